# SPDX-License-Identifier: Apache-2.0
"""A port of ours, before clients that are slow, silent, many, or ask too much."""

from __future__ import annotations

import contextlib
import gzip
import random
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus

import pytest
from support.waiting import DEADLINE_S, wait_until

from otelbpf.export import http_port
from otelbpf.export.http_port import CONNECTIONS_MOST, HEAD_MOST, HttpPort, Page, takes

ASKS = b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n"
CLOSED = (b"", None)


class Port:
    """A port that tells a text, and who asked."""

    def __init__(self, text: bytes) -> None:
        self.told: Page | None = Page.of(text, "text/plain")
        self.asked: list[str] = []
        self.port = HttpPort("127.0.0.1", 0, {"/metrics": self.page}, "Prometheus")
        self.address = self.port._listener.getsockname()

    def page(self, accept: str) -> Page:
        self.asked.append(accept)
        if self.told is None:
            raise RuntimeError("there is none")
        return self.told

    def connect(self) -> socket.socket:
        return socket.create_connection(self.address, DEADLINE_S)

    def get(self, path: str = "/metrics", method: str = "GET", **fields: str) -> tuple[int, bytes]:
        """Status and content of a scrape that is in nobody's way."""
        request = urllib.request.Request(
            f"http://{self.address[0]}:{self.address[1]}{path}", headers=fields, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
                return response.status, response.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


@contextlib.contextmanager
def serving(text: bytes = b"a 1\n") -> Iterator[Port]:
    made = Port(text)
    made.port.start()
    try:
        yield made
    finally:
        made.port.stop()


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is closed since time has passed."""
    for name in ("_HEAD_S", "_ANSWER_S", "_CLOSE_S"):
        monkeypatch.setattr(http_port, name, 600.0)


def is_closed(sock: socket.socket) -> bool:
    """By the other side; nothing is there to be read."""
    sock.setblocking(False)
    try:
        return not sock.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def closed_of(socks: list[socket.socket]) -> int:
    return sum(map(is_closed, socks))


def read_all(sock: socket.socket) -> bytes:
    sock.settimeout(DEADLINE_S)
    with sock.makefile("rb") as file:
        return file.read()


@pytest.mark.usefixtures("patient")
def test_hundreds_of_silent_connections(caplog: pytest.LogCaptureFixture) -> None:
    """No more than may be, in one thread; the oldest made room, and a scrape is answered."""
    threads = threading.active_count()
    with contextlib.ExitStack() as stack, serving() as port:
        silent = [stack.enter_context(port.connect()) for _ in range(300)]
        too_many = 300 - CONNECTIONS_MOST
        wait_until(lambda: closed_of(silent) == too_many, "all were accepted")
        closed = [is_closed(each) for each in silent]
        assert closed == [True] * too_many + [False] * CONNECTIONS_MOST
        for number in range(1, 4):
            assert port.get() == (200, b"a 1\n")
            # The one that has been answered is the next to make room.
            assert closed_of(silent) == too_many + 1, number
        assert threading.active_count() == threads + 1
        port.port.stop()
        assert closed_of(silent) == 300
    told = [each for each in caplog.messages if "connections to the Prometheus port" in each]
    assert len(told) == 1


def test_a_head_that_never_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte it gets as much time as one that is silent."""
    monkeypatch.setattr(http_port, "_HEAD_S", 0.3)
    with serving() as port, port.connect() as slow:
        sent = 0
        while not is_closed(slow):
            with contextlib.suppress(ConnectionError):
                slow.send(b"G" if sent == 0 else b"E")
            sent += 1
            assert sent < 1_000
            if sent == 5:
                assert port.get() == (200, b"a 1\n")
            time.sleep(0.02)
        assert sent > 5
    assert port.asked == [""]


@pytest.mark.parametrize("more", [1, 1_000_000])
def test_a_head_that_is_too_large(more: int) -> None:
    with serving() as port, port.connect() as large:
        large.sendall(b"GET /metrics HTTP/1.1\r\nCookie: ".ljust(HEAD_MOST + more, b"c"))
        assert read_all(large).startswith(b"HTTP/1.1 431 ")
        assert port.get() == (200, b"a 1\n")
    assert len(port.asked) == 1


def test_the_largest_head() -> None:
    with serving() as port, port.connect() as large:
        head = b"GET /metrics HTTP/1.1\r\nCookie: ".ljust(HEAD_MOST, b"c") + b"\r\n\r\n"
        for start in range(0, len(head), 1_000):
            large.sendall(head[start : start + 1_000])
        assert read_all(large).startswith(b"HTTP/1.1 200 ")


@pytest.mark.usefixtures("patient")
def test_nobody_takes_the_answer() -> None:
    """They have all places, and one more is served all the same: first who has not asked makes
    room, then who asked first."""
    text = random.Random(7).randbytes(10_000_000)
    with serving(text) as port, contextlib.ExitStack() as stack:
        lazy = []
        for number in range(1, CONNECTIONS_MOST):
            lazy.append(stack.enter_context(port.connect()))
            lazy[-1].sendall(ASKS)
            wait_until(lambda: len(port.asked) == number, "it is answered")  # noqa: B023
        silent = stack.enter_context(port.connect())
        wait_until(lambda: len(port.port._clients) == CONNECTIONS_MOST, "all have a place")
        assert port.get() == (200, text)
        assert is_closed(silent)
        lazy.append(stack.enter_context(port.connect()))
        lazy[-1].sendall(ASKS)
        wait_until(lambda: len(port.asked) == CONNECTIONS_MOST + 1, "it is answered")
        assert port.get() == (200, text)
        with contextlib.suppress(ConnectionError):
            assert len(read_all(lazy[0])) < len(text)
        for each in lazy[1:]:
            assert read_all(each).endswith(text[-100:])


def test_who_does_not_take_the_answer_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_port, "_ANSWER_S", 0.3)
    text = random.Random(7).randbytes(30_000_000)
    with serving(text) as port, port.connect() as lazy:
        lazy.sendall(ASKS)
        wait_until(lambda: not port.port._clients and bool(port.asked), "it was closed")
        with contextlib.suppress(ConnectionError):
            assert len(read_all(lazy)) < len(text)


def test_who_does_not_close(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_port, "_CLOSE_S", 0.1)
    with serving() as port, port.connect() as lazy:
        lazy.sendall(ASKS)
        assert read_all(lazy).endswith(b"\r\n\r\na 1\n")
        wait_until(lambda: not port.port._clients, "it was closed")


@pytest.mark.parametrize("accepted", ["gzip", "identity"])
@pytest.mark.parametrize(
    "text",
    [b"", bytes(40_000_000), random.Random(7).randbytes(1_000_000)],
    ids=["empty", "zeros", "noise"],
)
def test_the_text_is_whole(accepted: str, text: bytes) -> None:
    with serving(text) as port:
        status, content = port.get(**{"Accept-Encoding": accepted, "Accept": "text/this"})
    assert status == 200
    assert (gzip.decompress(content) if accepted == "gzip" else content) == text
    assert port.asked == ["text/this"]


def test_what_is_no_scrape() -> None:
    with serving() as port:
        assert port.get("/") == (404, b"what there is to see is at /metrics\n")
        assert port.get("/metrics?name=a") == (200, b"a 1\n")
        assert port.get(method="POST") == (405, b"this can be read only\n")
        assert port.get(method="HEAD") == (200, b"")
        for nonsense in (b"\x16\x03\x01\r\n\r\n", b"GET /metrics\r\n\r\n", b"\r\n\r\n"):
            with port.connect() as other:
                other.sendall(nonsense)
                assert read_all(other).startswith(b"HTTP/1.1 400 ")
        with port.connect() as other:
            other.shutdown(socket.SHUT_WR)
            assert read_all(other) == b""
    assert len(port.asked) == 2


def test_several_pages_and_their_statuses() -> None:
    port = HttpPort(
        "127.0.0.1", 0,
        {"/well": lambda _: Page.of(b"ok\n", "text/plain"),
         "/ill": lambda _: Page.of(b"no\n", "text/plain", HTTPStatus.SERVICE_UNAVAILABLE)},
        "test",
    )  # fmt: skip
    port.start()
    host, number = port._listener.getsockname()
    answers = {}
    for method, path in (("GET", "/well"), ("GET", "/ill"), ("HEAD", "/ill"), ("GET", "/")):
        with socket.create_connection((host, number), DEADLINE_S) as asking:
            asking.sendall(f"{method} {path} HTTP/1.1\r\nHost: here\r\n\r\n".encode())
            head, _, text = read_all(asking).partition(b"\r\n\r\n")
            answers[method, path] = head.split(b"\r\n")[0], text
    port.stop()
    assert answers == {
        ("GET", "/well"): (b"HTTP/1.1 200 OK", b"ok\n"),
        ("GET", "/ill"): (b"HTTP/1.1 503 Service Unavailable", b"no\n"),
        ("HEAD", "/ill"): (b"HTTP/1.1 503 Service Unavailable", b""),
        ("GET", "/"): (b"HTTP/1.1 404 Not Found", b"what there is to see is at /well and /ill\n"),
    }


def test_what_comes_after_the_request_does_not_cost_the_answer() -> None:
    """Closing with something unread would reset the connection."""
    text = random.Random(7).randbytes(3_000_000)
    with serving(text) as port, port.connect() as talkative:
        talkative.sendall(ASKS + bytes(200_000))
        assert read_all(talkative).endswith(text)


def test_a_page_that_cannot_be_made(caplog: pytest.LogCaptureFixture) -> None:
    """It is told, and the next one is tried."""
    with serving() as port:
        told, port.told = port.told, None
        assert port.get() == (500, b"see what otelbpf has logged\n")
        port.told = told
        assert port.get() == (200, b"a 1\n")
    (logged,) = (record for record in caplog.records if record.exc_info)
    assert logged.message == "the Prometheus port's page /metrics cannot be made"


@pytest.mark.usefixtures("patient")
def test_stopping_waits_for_an_answer_and_for_nobody_else() -> None:
    text = random.Random(7).randbytes(20_000_000)
    with serving(text) as port, port.connect() as taking, port.connect() as silent:
        taking.sendall(ASKS)
        wait_until(lambda: bool(port.asked), "it is answered")
        stopping = threading.Thread(target=port.port.stop)
        stopping.start()
        assert read_all(silent) == b""
        with pytest.raises(ConnectionError):
            port.connect()
        assert read_all(taking).endswith(text[-100:])
        taking.close()
        stopping.join(DEADLINE_S)
        assert not stopping.is_alive()


@pytest.mark.parametrize(
    ("value", "is_taken"),
    [
        ("gzip", True), ("deflate, GZIP ;q=0.5", True), ("gzip;q=1.0", True),
        ("", False), ("x-gzip", False), ("gzip;q=0", False), ("gzip; q=0.000, br", False),
    ],
)  # fmt: skip
def test_what_is_taken(value: str, is_taken: bool) -> None:
    assert takes(value, "gzip") is is_taken

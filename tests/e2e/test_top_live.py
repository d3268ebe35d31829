# SPDX-License-Identifier: Apache-2.0
"""`otelbpf top` in a terminal: what its screen shows of real requests, and how it is left."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Iterator

import pytest
from client import Client
from servers import Server, nginx
from stack import COUNT, OTELBPF, assert_nothing_left, kernel_ids
from support.namespaces import Network
from support.waiting import wait_until
from terminal import InTerminal, Terminal, in_terminal

ITEMS, MISSING = COUNT, 7


@pytest.fixture(scope="module")
def files(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """nginx, with one file to be asked for."""
    directory = tmp_path_factory.mktemp("nginx")
    (directory / "files/items").mkdir(parents=True)
    (directory / "files/items/1").write_text("one\n")
    with nginx(net, directory, 8090) as running:
        yield running


@contextlib.contextmanager
def top(net: Network, server: Server, *arguments: str, columns: int = 100) -> Iterator[InTerminal]:
    """A running `otelbpf top`, whose screen is there."""
    command = [
        OTELBPF,
        "top",
        "--interface",
        net.server.interface,
        "--netns",
        net.server.netns,
        "--port",
        str(server.port),
        *arguments,
    ]
    with in_terminal(command, columns=columns) as running:
        running.terminal.wait_for("by rate", "no requests yet")
        yield running


def ask(net: Network, server: Server) -> None:
    with Client.of(net, server.port) as client:
        for _ in range(ITEMS):
            assert client.ask("/items/1").status == 200
        for number in range(MISSING):
            assert client.ask(f"/missing/{number}?secret").status == 404


def so_far(terminal: Terminal) -> int:
    """The requests of the selected route."""
    match = re.search(r"([\d,]+) requests so far", terminal.line_of("requests so far"))
    return int(match[1].replace(",", "")) if match else 0


def test_it_shows_each_route_and_its_stages_and_q_ends_it(net: Network, files: Server) -> None:
    with top(net, files) as running:
        terminal = running.terminal
        ids = kernel_ids(running.process.pid)
        assert ids.left() == ids
        assert terminal.takes_keys()
        ask(net, files)
        # Of all requests so far: an interval may end between two of them.
        terminal.press("a")
        terminal.wait_for("GET /items/{id}", "GET /missing/{id}", f"seen {ITEMS + MISSING} =")
        assert "?secret" not in "\n".join(terminal.lines)
        items, missing = terminal.line_of("/items/{id}"), terminal.line_of("/missing/{id}")
        # The conventions do not call a 404 a server's error.
        assert " 0% " in items and " 0% " in missing
        assert "→" in items
        assert terminal.lines.index(items) < terminal.lines.index(missing)

        terminal.press("\x1b[B")
        terminal.wait_for("GET /items/{id}, server nginx", f"{ITEMS} requests so far", "read→write")
        terminal.press("\x1b[B")
        terminal.wait_for("GET /missing/{id}, server nginx")
        assert so_far(terminal) == MISSING
        terminal.press("\x1b[A")
        wait_until(lambda: so_far(terminal) == ITEMS, "the route above is selected")
        terminal.press("s")
        terminal.wait_for("by p99")
        # Each frame is drawn over the last one.
        assert len(re.findall(rb"\x1b\[H[^H]{,9}otelbpf top", terminal.said)) >= 5
        terminal.press("q")
        assert running.wait() == 0
        terminal.assert_restored()
        # What it leaves behind is of all requests.
        said = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", terminal.said.rpartition(b"\x1b[?1049l")[2])
        assert re.search(rb"all [\d.]+ s, by p99", said)
        seen = ITEMS + MISSING
        assert said.splitlines()[-1].decode() == (
            f"otelbpf: seen {seen} = exported 0 + sampled out {seen} + lost 0"
        )
        assert_nothing_left(ids)
        assert net.server.xdp_program() is None


@pytest.mark.parametrize("end", ["\x03", "\x1c", signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_is_as_it_was_whatever_ends_it(
    net: Network, files: Server, end: str | signal.Signals
) -> None:
    with top(net, files) as running:
        ids = kernel_ids(running.process.pid)
        if isinstance(end, str):
            running.terminal.press(end)
        else:
            running.process.send_signal(end)
        assert running.wait() == 0
        running.terminal.assert_restored()
        assert b"Traceback" not in running.terminal.said
        assert_nothing_left(ids)


def test_it_fits_a_window_that_changes(net: Network, files: Server) -> None:
    with top(net, files, columns=80) as running:
        terminal = running.terminal
        ask(net, files)
        terminal.press("a")
        terminal.wait_for("/missing/{id}")
        assert "most in, mean" in terminal.line_of("route")
        terminal.resize(160, 40)
        terminal.wait_for("whose the time is")
        # The last line is the window's.
        wait_until(lambda: "quit" in terminal.lines[-1], "it is as high as the window")
        terminal.press("q")
        assert running.wait() == 0
        terminal.assert_restored()


def test_what_clients_send_does_not_steer_the_terminal(net: Network, files: Server) -> None:
    # Without digits, which would make it an id.
    hostile = b"/\x1bc\x1b[J\x1b]l;owned\x07[red]\xe6\xbc\xa2\xe2\x80\xae\xcc\x81\x9bm"
    with top(net, files) as running:
        terminal = running.terminal
        with net.client.connect(net.server.ipv4, files.port) as connection:
            connection.sendall(b"GET " + hostile + b" HTTP/1.1\r\nHost: x\r\n\r\n")
            connection.recv(1 << 16)
        terminal.press("a")
        terminal.wait_for("GET /%1Bc%1B[J%1B]l;o")
        terminal.press("\x1b[B")
        terminal.wait_for("[red]%E6%BC%A2%E2%80%AE%CC%81")
        terminal.press("q")
        assert running.wait() == 0
        terminal.assert_restored()
        assert b"owned\x07" not in terminal.said
        assert b"\x1bc" not in terminal.said

# SPDX-License-Identifier: Apache-2.0
"""What a record says, in words."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from samples import SMALL, WHOLE, address, contexts, record, request

from otelbpf.host.processes import NOBODY, Process
from otelbpf.kernel.records import HTTP1, RequestFlag, Stamp
from otelbpf.ledger.request import address_of, requests_of
from otelbpf.policy.routes import Routes

LINE_MAX = HTTP1["request_line"].itemsize


def read_line(line: bytes, length: int | None = None) -> tuple[str, str, str]:
    """(method, path, query) of a request line."""
    made = request(
        capture_query=True,
        request_line=line[:LINE_MAX],
        request_line_length=len(line) if length is None else length,
    )
    return made.method, made.path, made.query


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"GET / HTTP/1.1", ("GET", "/", "")),
        (b"GET /a/b?c=d&e=/f HTTP/1.1", ("GET", "/a/b", "c=d&e=/f")),
        (b"GET /a? HTTP/1.1", ("GET", "/a", "")),
        (b"GET /a?b?c HTTP/1.0", ("GET", "/a", "b?c")),
        (b"GET /%41%20b HTTP/1.1", ("GET", "/%41%20b", "")),  # kept as sent
        (b"GET //double//slash HTTP/1.1", ("GET", "//double//slash", "")),
        (b"OPTIONS * HTTP/1.1", ("OPTIONS", "*", "")),
        (b"CONNECT shop.example:443 HTTP/1.1", ("CONNECT", "shop.example:443", "")),
        (b"GET http://shop.example/a/b?c=d HTTP/1.1", ("GET", "/a/b", "c=d")),
        (b"GET http://shop.example:8080 HTTP/1.1", ("GET", "/", "")),
        (b"GET http://shop.example?c=d HTTP/1.1", ("GET", "/", "c=d")),
        (b"GET http://shop.example?next=/secret HTTP/1.1", ("GET", "/", "next=/secret")),
        (
            b"GET /login?next=http://shop.example/a HTTP/1.1",
            ("GET", "/login", "next=http://shop.example/a"),
        ),
        (
            b"GET a?next=http://shop.example/secret HTTP/1.1",
            ("GET", "a", "next=http://shop.example/secret"),
        ),
        (b"brew /pot HTTP/1.1", ("brew", "/pot", "")),
        (b"GET /with space HTTP/1.1", ("GET", "/with space", "")),
        (b"GET /", ("GET", "", "")),  # HTTP/0.9: no request line of HTTP/1
        (b"GET", ("GET", "", "")),
        (b"", ("", "", "")),
    ],
)
def test_request_lines(line: bytes, expected: tuple[str, str, str]) -> None:
    assert read_line(line) == expected


def test_odd_bytes_do_no_harm() -> None:
    odd = bytes(range(1, 256)).replace(b" ", b"").replace(b"?", b"")[: LINE_MAX - 20]
    method, path, query = read_line(b"GET /" + odd + b" HTTP/1.1")
    assert (method, query) == ("GET", "")
    # UTF-8 comes out as text, any other byte as an escape.
    assert path == "/" + odd.decode("utf-8", "backslashreplace")


def test_zero_bytes_do_not_look_like_a_cut() -> None:
    made = request(request_line=b"GET /a HTTP/1.1\0\0")
    assert (made.path, made.path_cut) == ("/a", False)


def test_a_line_that_just_fits_is_not_cut() -> None:
    line = b"GET /" + b"a" * (LINE_MAX - 14) + b" HTTP/1.1"
    assert len(line) == LINE_MAX
    made = request(request_line=line)
    assert made.path == "/" + "a" * (LINE_MAX - 14)
    assert not made.path_cut


def test_a_path_that_is_too_long_is_cut() -> None:
    line = b"GET /" + b"a" * 500 + b" HTTP/1.1"
    made = request(request_line=line[:LINE_MAX], request_line_length=len(line))
    assert made.path == "/" + "a" * (LINE_MAX - 5)
    assert made.path_cut


@pytest.mark.parametrize("kept_of_version", range(10))
def test_a_line_cut_behind_its_path(kept_of_version: int) -> None:
    """The cut may fall into ` HTTP/1.1` itself: then the path is whole."""
    path = b"/" + b"a" * (LINE_MAX - 4 - 1 - kept_of_version)
    line = b"GET " + path + b" HTTP/1.1 "
    made = request(request_line=line[:LINE_MAX], request_line_length=len(line))
    assert made.path == path.decode()
    assert made.path_cut == (kept_of_version == 0)


def test_a_line_cut_in_its_query_has_its_whole_path() -> None:
    line = b"GET /a/b?" + b"c" * 500 + b" HTTP/1.1"
    made = request(capture_query=True, request_line=line[:LINE_MAX], request_line_length=len(line))
    assert (made.path, made.path_cut) == ("/a/b", False)
    assert made.query == "c" * (LINE_MAX - 9)


def test_the_query_only_on_demand() -> None:
    assert request().query == ""
    assert request(capture_query=True).query == "token=s3cret"
    assert "s3cret" not in repr(request())


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (address("192.0.2.1"), "192.0.2.1"),
        (address("0.0.0.0"), "0.0.0.0"),
        (address("2001:db8::a:0:1"), "2001:db8::a:0:1"),
        (address("::1"), "::1"),
        (bytes(16), "::"),
        (address("fe80::1"), "fe80::1"),
        (bytes(12) + bytes([192, 0, 2, 1]), "::c000:201"),  # compatible is not mapped
    ],
)
def test_addresses(raw: bytes, text: str) -> None:
    assert address_of(raw) == text
    made = request(peer_address=raw, local_address=address("198.51.100.1"))
    assert (made.peer_address, made.local_address) == (text, "198.51.100.1")


def test_everything_else_is_carried_over() -> None:
    made = request(
        http_minor=0,
        status=503,
        pid=3,
        process=(5, 6, 7, b"shop"),
        tid=4,
        ordinal=22,
        request_bytes=1 << 40,
        response_bytes=6,
        request_body_bytes=7,
        response_body_bytes=8,
        request_retransmits=9,
        response_retransmits=10,
        out_of_order=11,
        peer_port=65_535,
        local_port=1,
        flags=WHOLE | RequestFlag.UPGRADED,
        parent=0xDEF,
        parent_flags=3,
    )
    assert (made.trace_id, made.span_id, made.parent_span_id) == (1 << 64, 0xABC, 0xDEF)
    assert (made.trace_flags, made.http_version, made.status) == (3, "1.0", 503)
    assert made.server == ("shop.example:8080", "shop.example", 8080)
    assert made.user_agent == "curl/8.1"
    assert made.process == Process(3, 5, 6, 7, b"shop")
    assert (made.tid, made.ordinal) == (4, 22)
    assert (made.request_bytes, made.response_bytes) == (1 << 40, 6)
    assert (made.request_body_bytes, made.response_body_bytes) == (7, 8)
    assert (made.request_retransmits, made.response_retransmits) == (9, 10)
    assert made.out_of_order == 11
    assert made.acked_ns == SMALL[Stamp.ACKED] - SMALL[Stamp.TC_OUT]
    assert (made.peer_port, made.local_port) == (65_535, 1)
    assert made.flags == WHOLE | RequestFlag.UPGRADED


def test_a_user_agent_longer_than_the_record_holds_is_its_beginning() -> None:
    held = HTTP1["user_agent"].itemsize
    assert request(user_agent=b"u" * held, user_agent_length=500).user_agent == "u" * held


def test_a_part_of_a_host_is_not_taken_for_the_host() -> None:
    held = HTTP1["host"].itemsize
    assert request(host=b"h" * held, host_length=held).server.address == "h" * held
    assert request(host=b"h" * held, host_length=held + 1).server.address == "192.0.2.1"


def test_whose_it_is_is_not_known_without_a_pid() -> None:
    """What was in the slot before is not cleared."""
    assert request(pid=0, process=(5, 6, 7, b"shop")).process == NOBODY


def test_a_batch_keeps_its_order() -> None:
    n = 23
    records = np.concatenate([record(ordinal=i, status=200 + i) for i in range(n)])
    numbered = dataclasses.replace(contexts(n), span_id=np.arange(100, 100 + n, dtype=np.uint64))
    made = requests_of(records, numbered, Routes(), capture_query=False)
    assert [(r.ordinal, r.status, r.span_id, r.trace_id) for r in made] == [
        (i, 200 + i, 100 + i, 1 << 64 | i) for i in range(n)
    ]


ENDINGS = {
    RequestFlag.PEER_RESET: "client_reset",
    RequestFlag.LOCAL_RESET: "server_reset",
    RequestFlag.LOCAL_CLOSED: "server_closed",
    RequestFlag.PEER_CLOSED: "client_closed",
}


@pytest.mark.parametrize("idle", [RequestFlag(0), RequestFlag.IDLE_TIMEOUT])
@pytest.mark.parametrize("came_first", [*ENDINGS, RequestFlag(0)])
def test_how_it_was_cut_short(came_first: RequestFlag, idle: RequestFlag) -> None:
    """By which side's FIN or RST came first: a record has no other. Silence says least."""
    flags = RequestFlag.REQUEST_RECEIVED | came_first | idle
    expected = ENDINGS.get(came_first) or ("idle_timeout" if idle else "connection_lost")
    assert request(flags=flags).ended_by == expected
    assert request(flags=flags | RequestFlag.REQUEST_ANSWERED).ended_by == ""


EXPECTED = ("nic", "tc", "tcp", "queued", "read", "write", "tc_out", "acked")
OPTIONAL = ("woken", "running")


def test_every_subset_of_the_stamps_says_what_is_absent() -> None:
    names = [s.name.lower() for s in SMALL]
    for bits in range(1, 1 << len(SMALL)):
        stamps = {s: at for i, (s, at) in enumerate(SMALL.items()) if bits >> i & 1}
        if set(stamps) == {Stamp.ACKED}:
            continue  # there is none without the stamp of its first byte
        made = request(stamps)
        missing = {name for i, name in enumerate(names) if not bits >> i & 1}
        assert set(made.absent) == missing
        assert len(made.absent) == len(missing)
        assert made.complete == missing.isdisjoint(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED + OPTIONAL)
def test_one_absent_stamp(name: str) -> None:
    stamps = {s: at for s, at in SMALL.items() if s.name.lower() != name}
    made = request(stamps)
    assert made.absent == (name,)
    assert made.complete == (name in OPTIONAL)


def test_last_stamps_are_never_missed() -> None:
    assert request().absent == ()
    assert not any("_last" in stage.name for stage in request().stages)
    made = request({**SMALL, Stamp.READ_LAST: 30_000})
    assert made.absent == ()
    assert [s.name for s in made.stages[5:8]] == [
        "running_to_read",
        "read_to_read_last",
        "read_last_to_write",
    ]


def test_utf_8_is_read_as_such() -> None:
    assert read_line("GET /grüße HTTP/1.1".encode())[1] == "/grüße"

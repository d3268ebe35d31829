# SPDX-License-Identifier: Apache-2.0
"""What a record says, in words: those of its span, which a description makes of them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from samples import (
    CLIENT_TOLD,
    PLAIN,
    RESOURCE,
    SMALL,
    WHOLE,
    WITH_QUERY,
    address,
    contexts,
    description,
    numbered,
    record,
    requests,
)

from otelbpf.agent.config import Config
from otelbpf.agent.pipeline import Pipeline
from otelbpf.host.processes import NOBODY, Process
from otelbpf.host.resource import Named
from otelbpf.kernel.records import HTTP1, RequestFlag, RequestRecordRow, Stamp
from otelbpf.ledger.batch import Batch, Requests
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.request import address_of, process_of
from otelbpf.policy.capture import Capture
from otelbpf.traces.spans import readable_spans

LINE_MAX = HTTP1["request_line"].itemsize


def spans(made: Requests, *, capture: Capture = PLAIN) -> list[ReadableSpan]:
    return readable_spans(description(capture=capture), made)


def request(*, capture: Capture = PLAIN, **fields: object) -> dict[str, object]:
    """What the span of one request says."""
    made = requests(**fields)  # type: ignore[arg-type]
    return dict(spans(made, capture=capture)[0].attributes or {})


def path_of(said: dict[str, object]) -> tuple[object, bool]:
    """It, and whether it was cut."""
    return said["url.path"], said.get("otelbpf.url.path.cut", False) is True


def read_line(line: bytes, length: int | None = None) -> tuple[str, str, str]:
    """(method, path, query) of a request line."""
    made = request(
        capture=WITH_QUERY,
        request_line=line[:LINE_MAX],
        request_line_length=len(line) if length is None else length,
    )
    method = made.get("http.request.method_original", made["http.request.method"])
    return method, made["url.path"], made.get("url.query", "")  # type: ignore[return-value]


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
    assert path_of(made) == ("/a", False)


def test_a_line_that_just_fits_is_not_cut() -> None:
    line = b"GET /" + b"a" * (LINE_MAX - 14) + b" HTTP/1.1"
    assert len(line) == LINE_MAX
    made = request(request_line=line)
    assert path_of(made) == ("/" + "a" * (LINE_MAX - 14), False)


def test_a_path_that_is_too_long_is_cut() -> None:
    line = b"GET /" + b"a" * 500 + b" HTTP/1.1"
    made = request(request_line=line[:LINE_MAX], request_line_length=len(line))
    assert path_of(made) == ("/" + "a" * (LINE_MAX - 5), True)


@pytest.mark.parametrize("kept_of_version", range(10))
def test_a_line_cut_behind_its_path(kept_of_version: int) -> None:
    """The cut may fall into ` HTTP/1.1` itself: then the path is whole."""
    path = b"/" + b"a" * (LINE_MAX - 4 - 1 - kept_of_version)
    line = b"GET " + path + b" HTTP/1.1 "
    made = request(request_line=line[:LINE_MAX], request_line_length=len(line))
    assert path_of(made) == (path.decode(), kept_of_version == 0)


def test_a_line_cut_in_its_query_has_its_whole_path() -> None:
    line = b"GET /a/b?" + b"c" * 500 + b" HTTP/1.1"
    made = request(capture=WITH_QUERY, request_line=line[:LINE_MAX], request_line_length=len(line))
    assert path_of(made) == ("/a/b", False)
    assert made["url.query"] == "c" * (LINE_MAX - 9)


def test_the_query_only_on_demand() -> None:
    assert "url.query" not in request()
    assert request(capture=WITH_QUERY)["url.query"] == "token=s3cret"
    assert "s3cret" not in repr(request())
    assert "s3cret" not in repr([span.to_json() for span in spans(requests())])


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
    assert made["network.peer.address"] == made["client.address"] == text
    assert made["network.local.address"] == "198.51.100.1"


CLIENT = ("client.address", "client.port", "network.peer.address", "network.peer.port")


@pytest.mark.parametrize(
    ("told", "client", "said"),
    [
        # Where none was told there is whatever was there before.
        (0, "203.0.113.9", ("198.51.100.7", 40_001)),
        (CLIENT_TOLD, "203.0.113.9", ("203.0.113.9", 4711)),
        (CLIENT_TOLD, "2001:db8::9", ("2001:db8::9", 4711)),
        (CLIENT_TOLD, "0.0.0.0", ("0.0.0.0", 4711)),
        (CLIENT_TOLD, "::", (None, None)),
        (CLIENT_TOLD, "203.0.113.8", ("203.0.113.8", None)),  # without a port
    ],
)
def test_the_client_is_whom_the_proxy_tells(
    told: int, client: str, said: tuple[str | None, int | None]
) -> None:
    raw = bytes(16) if client == "::" else address(client)
    port = 0 if client == "203.0.113.8" else 4711
    made = request(client_told=told, client_address=raw, client_port=port)
    assert tuple(map(made.get, CLIENT)) == (*said, "198.51.100.7", 40_001)


def test_each_request_has_its_own_client() -> None:
    made = Requests.joined(
        [
            requests(client_told=told, client_address=address(f"203.0.113.{number}"), client_port=1)
            for number, told in enumerate((CLIENT_TOLD, 0, CLIENT_TOLD))
        ]
    )
    batch = Batch(made)
    assert batch.is_client_known.all()
    assert [address_of(raw.tobytes()) for raw in batch.known_client_address] == [
        "203.0.113.0", "198.51.100.7", "203.0.113.2",
    ]  # fmt: skip
    assert batch.known_client_port.tolist() == [1, 40_001, 1]


def test_everything_else_is_carried_over() -> None:
    made = requests(
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
    span, *_ = spans(made)
    assert (span.context.trace_id, span.context.span_id) == (1 << 64, 0xABC)
    assert span.parent is not None
    assert (span.parent.trace_id, span.parent.span_id) == (1 << 64, 0xDEF)
    assert span.parent.trace_flags == 3
    said = dict(span.attributes or {})
    assert (said["network.protocol.version"], said["http.response.status_code"]) == ("1.0", 503)
    assert (said["server.address"], said["server.port"]) == ("shop.example", 8080)
    assert said["user_agent.original"] == "curl/8.1"
    assert (said["thread.id"], said["otelbpf.connection.request"]) == (4, 22)
    assert (said["http.request.size"], said["http.response.size"]) == (1 << 40, 6)
    assert (said["http.request.body.size"], said["http.response.body.size"]) == (7, 8)
    assert said["otelbpf.tcp.retransmits"] == 9 + 10
    assert said["otelbpf.tcp.out_of_order"] == 11
    acked_ns = SMALL[Stamp.ACKED] - SMALL[Stamp.TC_OUT]
    assert said["otelbpf.tcp.ack.duration_ns"] == acked_ns
    assert said["network.peer.port"] == said["client.port"] == 65_535
    assert said["network.local.port"] == 1
    batch = Batch(made)
    assert batch.values("process") == [(5, 6, 7, b"shop")]
    assert (batch.values("request_retransmits"), batch.values("response_retransmits")) == (
        [9], [10]
    )  # fmt: skip
    assert batch.values("flags") == [WHOLE | RequestFlag.UPGRADED]
    (row,) = map(RequestRecordRow, made.records.tolist())
    assert process_of(row) == Process(3, 5, 6, 7, b"shop")


def test_the_authority_is_the_host_as_it_was_sent() -> None:
    made = request(flags=WHOLE | RequestFlag.CLIENT)
    assert made["url.full"] == "http://shop.example:8080/items/7"
    assert (made["server.address"], made["server.port"]) == ("shop.example", 8080)


def test_a_user_agent_longer_than_the_record_holds_is_its_beginning() -> None:
    held = HTTP1["user_agent"].itemsize
    made = request(user_agent=b"u" * held, user_agent_length=500)
    assert made["user_agent.original"] == "u" * held


def test_a_part_of_a_host_is_not_taken_for_the_host() -> None:
    held = HTTP1["host"].itemsize
    assert request(host=b"h" * held, host_length=held)["server.address"] == "h" * held
    assert request(host=b"h" * held, host_length=held + 1)["server.address"] == "192.0.2.1"


class Asked:
    """Resources that were asked for, each made anew."""

    def __init__(self) -> None:
        self.of_whom: list[tuple[Process, int]] = []

    def of(self, process: Process, port: int) -> Named:
        self.of_whom.append((process, port))
        return Named(Resource({"pid": process.pid, "port": port}), True)


def whose(*records: np.ndarray) -> tuple[list[tuple[Process, int]], list[object]]:
    """Whom the pipeline asks for of these records; and (pid, port) of what each one gets."""
    asked = Asked()
    pipeline = Pipeline(Config((), ()), Ids(bytes(16)), asked, None)  # type: ignore[arg-type]
    found = pipeline._resources_of(np.concatenate(records))
    return asked.of_whom, [(each.attributes["pid"], each.attributes["port"]) for each in found]


def test_whose_it_is_is_not_known_without_a_pid() -> None:
    """What was in the slot before is not cleared."""
    made = record(pid=0, process=(5, 6, 7, b"shop"))
    assert process_of(RequestRecordRow(made.tolist()[0])) == NOBODY
    assert whose(made) == ([(NOBODY, 8080)], [(0, 8080)])


def test_a_resource_is_asked_for_once_of_each_process_and_port() -> None:
    """A client is nobody's at any port."""
    shop, till = (5, 6, 7, b"shop"), (8, 6, 7, b"till")
    of_whom, found = whose(
        record(pid=3, process=shop),
        record(pid=4, process=till, local_port=81),
        record(pid=3, process=shop, local_port=81),
        record(pid=3, process=shop),
        record(pid=3, process=shop, flags=WHOLE | RequestFlag.CLIENT, local_port=40_001),
        record(pid=3, process=shop, flags=WHOLE | RequestFlag.CLIENT, local_port=40_002),
    )
    assert set(of_whom) == {
        (Process(3, *shop), 8080), (Process(4, *till), 81), (Process(3, *shop), 81),
        (Process(3, *shop), 0),
    }  # fmt: skip
    assert len(of_whom) == 4
    assert found == [(3, 8080), (4, 81), (3, 81), (3, 8080), (3, 0), (3, 0)]


def test_a_batch_keeps_its_order() -> None:
    n = 23
    records = np.concatenate([record(ordinal=i, status=200 + i) for i in range(n)])
    named = dataclasses.replace(contexts(n), span_id=np.arange(100, 100 + n, dtype=np.uint64))
    made = dataclasses.replace(
        numbered(n), records=records, contexts=named, resources=np.array([RESOURCE] * n, object)
    )
    said = [(span, span.attributes or {}) for span in spans(made)[:n]]
    assert [
        (
            of["otelbpf.connection.request"],
            of["http.response.status_code"],
            span.context.span_id,
            span.context.trace_id,
        )
        for span, of in said
    ] == [(i, 200 + i, 100 + i, 1 << 64 | i) for i in range(n)]


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
    assert request(flags=flags)["error.type"] == expected
    assert "error.type" not in request(flags=flags | RequestFlag.REQUEST_ANSWERED)


EXPECTED = ("nic", "tc", "tcp", "queued", "read", "write", "tc_out", "acked")
OPTIONAL = ("woken", "running")


def test_every_subset_of_the_stamps_says_what_is_absent() -> None:
    names = [s.name.lower() for s in SMALL]
    # There is none without the stamp of its first byte.
    every = [bits for bits in range(1, 1 << len(SMALL)) if 1 << names.index("acked") != bits]
    made = Requests.joined(
        [requests({s: at for i, (s, at) in enumerate(SMALL.items()) if bits >> i & 1})
         for bits in every]
    )  # fmt: skip
    for bits, span in zip(every, spans(made)[: len(every)], strict=True):
        said = span.attributes or {}
        absent = said["otelbpf.ledger.absent"]
        missing = {name for i, name in enumerate(names) if not bits >> i & 1}
        assert set(absent) == missing
        assert len(absent) == len(missing)
        assert said["otelbpf.ledger.complete"] == missing.isdisjoint(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED + OPTIONAL)
def test_one_absent_stamp(name: str) -> None:
    stamps = {s: at for s, at in SMALL.items() if s.name.lower() != name}
    made = request(stamps=stamps)
    assert made["otelbpf.ledger.absent"] == (name,)
    assert made["otelbpf.ledger.complete"] == (name in OPTIONAL)


def test_last_stamps_are_never_missed() -> None:
    span, *stages = spans(requests())
    assert (span.attributes or {})["otelbpf.ledger.absent"] == ()
    assert not any("_last" in stage.name for stage in stages)
    span, *stages = spans(requests({**SMALL, Stamp.READ_LAST: 30_000}))
    assert (span.attributes or {})["otelbpf.ledger.absent"] == ()
    assert [s.name for s in stages[5:8]] == [
        "running_to_read",
        "read_to_read_last",
        "read_last_to_write",
    ]


def test_utf_8_is_read_as_such() -> None:
    assert read_line("GET /grüße HTTP/1.1".encode())[1] == "/grüße"

# SPDX-License-Identifier: Apache-2.0
"""A recorded ring becomes exactly the spans that lie beside it."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter as Counts
from dataclasses import dataclass, replace

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from replay import (
    CLOCK,
    ORIGIN,
    RING,
    SPANS,
    all_as_json,
    as_json,
    by_request,
    layout,
    replay,
)

from otelbpf.agent.config import Config
from otelbpf.export.sender import QueueLimits
from otelbpf.kernel.records import REQUEST_RECORD, Counter, RequestFlag, Stamp
from otelbpf.ledger.ignored import Ignored
from otelbpf.ledger.reader import decode
from otelbpf.ledger.tally import Lost, Sums
from otelbpf.policy.capture import Capture
from otelbpf.traces.description import StageStyle

CONFIG = Config((), ())
COUNT = 8


@dataclass(frozen=True)
class Seen:
    """What curl saw of one exchange."""

    method: str
    path: str
    port: int
    request_bytes: int
    request_body: int
    status: int
    response_head: int
    response_body: int


@pytest.fixture(scope="module")
def ring() -> bytes:
    assert f"layout {layout()}\n" in ORIGIN.read_text(), (
        "struct request_record has changed since the recording: run scripts/record --rewrite"
    )
    return RING.read_bytes()


@pytest.fixture(scope="module")
def seen_by_curl() -> list[Seen]:
    numbers = r"port (\d+): request (\d+) .* of (\d+), response (\d+) .* of (\d+) and .* of (\d+)$"
    found = re.findall(rf"^(\w+) http://[^/]+(/[^ ?]*)\S* from {numbers}", ORIGIN.read_text(), re.M)
    return [Seen(method, path, *map(int, rest)) for method, path, *rest in found]


def spans_of(ring: bytes, config: Config = CONFIG) -> list[ReadableSpan]:
    return replay(ring, config)[1]


def test_all_spans_are_as_expected(ring: bytes) -> None:
    spans = spans_of(ring)
    expected = json.loads(SPANS.read_text())
    assert all_as_json(spans) == expected
    assert len(spans) == len(expected)


def test_it_is_the_same_every_time(ring: bytes) -> None:
    first, again = (list(map(as_json, spans_of(ring))) for _ in range(2))
    assert first == again


def test_curl_saw_the_same(ring: bytes, seen_by_curl: list[Seen]) -> None:
    assert len(seen_by_curl) == COUNT
    ours = []
    for span, _ in by_request(spans_of(ring)):
        has = span.attributes
        assert has is not None
        body = has["http.response.body.size"]
        ours.append(
            Seen(
                has["http.request.method"],
                has["url.path"],
                has["client.port"],
                has["http.request.size"],
                has["http.request.body.size"],
                has["http.response.status_code"],
                has["http.response.size"] - body,
                body,
            )
        )
    assert ours == seen_by_curl


def test_stages_tile_and_are_made_of_the_stamps(ring: bytes) -> None:
    records = decode(ring)
    requests = by_request(spans_of(ring))
    assert len(requests) == len(records) == COUNT
    for record, (span, stages) in zip(records, requests, strict=True):
        bounds = record["stamp_ktime_ns"][: Stamp.ACKED]
        stamps = sorted(int(at) + CLOCK.offset_ns for at in bounds if at)
        assert [span.start_time, span.end_time] == [stamps[0], stamps[-1]]
        ends = [(stage.start_time, stage.end_time) for stage in stages]
        assert ends == list(itertools.pairwise(stamps))


def test_every_way_that_the_recording_is_to_show(ring: bytes) -> None:
    requests = [span for span, _ in by_request(spans_of(ring))]
    assert [span.name for span in requests] == [
        "GET /hello.txt",
        "POST /orders",
        "HEAD /hello.txt",
        "GET /nothing/here",
        *["GET /hello.txt"] * 3,
        "GET /large.bin",
    ]
    parents = [f"{s.parent.trace_id:032x}-{s.parent.span_id:016x}" for s in requests if s.parent]
    assert parents == ["4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7"]
    assert requests[4].parent is not None
    has = [span.attributes or {} for span in requests]
    assert [a["client.address"] for a in has] == (
        ["198.18.0.2"] * 5 + ["fd00:6f74::2"] + ["198.18.0.2"] * 2
    )
    assert [a["otelbpf.connection.request"] for a in has] == [0] * 7 + [1]
    assert all(a["otelbpf.ledger.complete"] for a in has)
    assert any(decode(ring)["stamp_ktime_ns"][:, Stamp.WOKEN])
    assert "s3cret" not in json.dumps(list(map(as_json, requests)))


def test_the_query_on_demand(ring: bytes) -> None:
    requests = by_request(spans_of(ring, Config((), (), capture=Capture(query=True))))
    queries = [(span.attributes or {}).get("url.query") for span, _ in requests]
    assert queries == [None, "token=s3cret", *[None] * 6]


def test_stages_as_attributes_say_the_same(ring: bytes) -> None:
    plain = by_request(spans_of(ring))
    spans = spans_of(ring, Config((), (), stages=StageStyle.ATTRIBUTES))
    assert len(spans) == COUNT
    for span, (same, stages) in zip(spans, plain, strict=True):
        attributes = dict(span.attributes or {})
        lengths = {f"otelbpf.stage.{s.name}": s.end_time - s.start_time for s in stages}
        assert attributes == {**(same.attributes or {}), **lengths}


def sums(ring: bytes, config: Config = CONFIG) -> tuple[Sums, list[ReadableSpan]]:
    pipeline, spans = replay(ring, config)
    counts = {counter: COUNT if counter is Counter.SEEN else 0 for counter in Counter}
    return pipeline.tally.sums(counts), spans


def test_all_is_accounted_for(ring: bytes) -> None:
    found, _ = sums(ring)
    assert (found.exported, found.sampled_out, found.in_flight) == (COUNT, 0, 0)


def test_what_is_ignored_becomes_no_spans(ring: bytes) -> None:
    paths = Counts((span.attributes or {})["url.path"] for span, _ in by_request(spans_of(ring)))
    assert len(paths) > 1
    for path, count in paths.items():
        found, spans = sums(ring, replace(CONFIG, ignored_routes=("/nothing", str(path))))
        assert (found.exported, found.sampled_out, found.ignored) == (COUNT - count, count, count)
        left = {(span.attributes or {})["url.path"] for span, _ in by_request(spans)}
        assert left == paths.keys() - {path}
    found, _ = sums(ring, replace(CONFIG, ignored_routes=("/*",)))
    assert (found.exported, found.ignored) == (0, COUNT)


@pytest.mark.parametrize(
    ("line", "is_ignored"),
    [
        (b"GET /healthz/live HTTP/1.1", True),
        (b"GET /healthz/live?secret=/x HTTP/1.1", True),
        (b"GET /healthzz HTTP/1.1", False),
        (b"CONNECT healthz:80 HTTP/1.1", False),
        # Cut: it may be of another route.
        (b"GET /healthz/" + b"x" * 200 + b" HTTP/1.1", False),
    ],
)
def test_which_paths_are_ignored(line: bytes, is_ignored: bool) -> None:
    records = np.zeros(1, REQUEST_RECORD)
    records["http1"]["request_line"] = line[: records["http1"]["request_line"].dtype.itemsize]
    records["http1"]["request_line_length"] = len(line)
    ignored = Ignored(["/healthz/*"])
    for _ in range(2):
        assert ignored.of(records).tolist() == [is_ignored]


def test_only_what_the_kernel_keeps_becomes_spans(ring: bytes) -> None:
    records = decode(ring).copy()
    records["flags"][1:] &= ~np.uint32(RequestFlag.KEPT)
    found, spans = sums(records.tobytes())
    assert (found.exported, found.sampled_out, found.in_flight) == (1, COUNT - 1, 0)
    ((_, stages),) = by_request(spans)
    assert len(stages) == len(spans) - 1


def test_what_does_not_fit_is_lost(ring: bytes) -> None:
    found, spans = sums(ring, Config((), (), queue=QueueLimits(requests=3)))
    assert (found.exported, found.lost[Lost.QUEUE_FULL], found.in_flight) == (3, COUNT - 3, 0)
    assert len(by_request(spans)) == 3


def test_the_resource_names_the_reader(ring: bytes) -> None:
    spans = spans_of(ring, Config((), (), service_name="shop"))
    assert {span.resource.attributes["service.name"] for span in spans} == {"shop"}
    pids = {span.resource.attributes["process.pid"] for span in spans}
    assert pids == set(decode(ring)["pid"].tolist())
    assert len(pids) == 1

# SPDX-License-Identifier: Apache-2.0
"""Records and requests as the kernel could have made them, to be changed by a test."""

from __future__ import annotations

import ipaddress

import numpy as np
from opentelemetry.sdk.resources import Resource

from otelbpf.host.clock import ClockReading
from otelbpf.kernel.records import REQUEST_RECORD, RequestFlag, Stamp
from otelbpf.ledger.batch import Requests
from otelbpf.ledger.trace_contexts import Contexts
from otelbpf.policy.capture import Capture
from otelbpf.policy.routes import Routes
from otelbpf.traces.description import Description, StageStyle

WHOLE = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
#: CLOCK_MONOTONIC ns of the first stamp.
BEGIN_KTIME_NS = 5_000_000_000_000
#: What a request that fits into one segment each way is stamped with; ns after the first.
SMALL: dict[Stamp, int] = {
    Stamp.NIC: 0,
    Stamp.TC: 700,
    Stamp.TCP: 2_001,
    Stamp.QUEUED: 2_900,
    Stamp.WOKEN: 3_333,
    Stamp.RUNNING: 15_000,
    Stamp.READ: 21_007,
    Stamp.WRITE: 400_000,
    Stamp.TC_OUT: 412_345,
    Stamp.ACKED: 450_001,
}
#: Unix time in the tests, and whose the requests are.
CLOCK = ClockReading(offset_ns=1_790_000_000_000_000_000, uncertainty_ns=50)
RESOURCE = Resource({"service.name": "shop"})
TEXTS = ("request_line", "host", "user_agent", "traceparent")


#: Of a record, bpf/abi/records.h.
CLIENT_TOLD = 0x80


def address(text: str) -> bytes:
    """16 bytes; IPv4 as IPv4-mapped IPv6."""
    made = ipaddress.ip_address(text)
    return made.packed if made.version == 6 else bytes(10) + b"\xff\xff" + made.packed


def record(stamps: dict[Stamp, int] | None = None, **fields: object) -> np.ndarray:
    """One record of a small GET that went as it should, with some fields changed.

    Args:
        stamps: ns after BEGIN_KTIME_NS; those not named are absent.
        fields: of struct request_record and its sections. A text's length is set along with it.
    Returns:
        (1,) REQUEST_RECORD.
    """
    made = np.zeros(1, REQUEST_RECORD)
    for stamp, after_ns in (SMALL if stamps is None else stamps).items():
        made["stamp_ktime_ns"][0, stamp] = BEGIN_KTIME_NS + after_ns
    values: dict[str, object] = {
        "connection_id": 7,
        "request_bytes": 90,
        "response_bytes": 150,
        "response_body_bytes": 12,
        "pid": 0,
        "tid": 4242,
        "flags": WHOLE,
        "peer_address": address("198.51.100.7"),
        "local_address": address("192.0.2.1"),
        "peer_port": 40_001,
        "local_port": 8080,
        "status": 200,
        "http_minor": 1,
        "request_line": b"GET /items/7?token=s3cret HTTP/1.1",
        "host": b"shop.example:8080",
        "user_agent": b"curl/8.1",
        "traceparent": b"",
        **fields,
    }
    for name in TEXTS:
        values.setdefault(f"{name}_length", len(values[name]))  # type: ignore[arg-type]
    sections = (made, made["join"], made["http1"])
    for name, value in values.items():
        section = next(each for each in sections if name in each.dtype.names)
        is_octets = isinstance(value, bytes) and section[name].dtype.kind == "V"
        section[name] = np.void(value) if is_octets else value
    return made


def contexts(n: int = 1, *, parent: int = 0, flags: int = 0) -> Contexts:
    """The contexts of n requests: trace ids 1<<64|0, 1<<64|1, ..."""
    return Contexts(
        np.ones(n, np.uint64),
        np.arange(n, dtype=np.uint64),
        span_id=np.full(n, 0xABC, np.uint64),
        parent_span_id=np.full(n, parent, np.uint64),
        flags=np.full(n, flags, np.uint8),
        called=np.full(n, parent != 0),
        caused=np.zeros(n, bool),
        linked_span_id=np.zeros(n, np.uint64),
        elsewhere=np.zeros(n, bool),
    )


def requests(
    stamps: dict[Stamp, int] | None = None,
    *,
    parent: int = 0,
    parent_flags: int = 0,
    resource: Resource = RESOURCE,
    clock: ClockReading = CLOCK,
    **fields: object,
) -> Requests:
    """The one that record() becomes; its span id is 0xabc."""
    return Requests(
        record(stamps, **fields),
        contexts(parent=parent, flags=parent_flags),
        np.array([resource], object),
        clock,
    )


def numbered(n: int, stamps: dict[Stamp, int] | None = None) -> Requests:
    """n requests with span ids 1..n, each with these stamps."""
    made = Requests.joined([requests(stamps)] * n)
    made.contexts.span_id[:] = np.arange(1, n + 1)
    return made


PLAIN, WITH_QUERY = Capture(), Capture(query=True)


def description(
    *,
    routes: Routes | None = None,
    capture: Capture = PLAIN,
    stages: StageStyle = StageStyle.SPANS,
) -> Description:
    """What spans say where nothing else is asked for."""
    return Description(routes or Routes(), capture, stages)

# SPDX-License-Identifier: Apache-2.0
"""Records that Hypothesis draws: any that the kernel could make, and shrunk to what matters."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from samples import BEGIN_KTIME_NS, CLIENT_TOLD, address

from otelbpf.kernel.records import HTTP1, JOIN, REQUEST_RECORD, RequestFlag, Said, Stamp

_TRACE = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
_ADDRESSES = tuple(map(address, ("198.51.100.7", "0.0.0.0", "2001:db8::1", "::1", "::")))
# So many requests in a batch are enough for their differences to meet.
_MOST = 5

# ---- numbers ----

_U8, _U16, _U32 = (st.integers(0, (1 << bits) - 1) for bits in (8, 16, 32))
# None of a request's own numbers can have more bits: OTLP's are signed.
_U63 = st.one_of(st.integers(0, 1 << 20), st.integers(0, (1 << 63) - 1))
# Often the same ones: a number that is drawn again makes a text that is known already.
_PORTS = st.one_of(st.sampled_from((80, 443, 8080)), _U16)
_STATUSES = st.one_of(st.sampled_from((0, 101, 200, 404, 500)), _U16)
_FLAGS = st.one_of(
    st.just(int(RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED)),
    st.integers(0, (1 << len(RequestFlag)) - 1),
    st.just((1 << len(RequestFlag)) - 1),
)

# ---- texts ----

_ODD = st.sampled_from((b"\0", b"\xff", b"\xc3\xa9", b"\xc3", b"\\", b"%", b" ", b"\t", b"\x7f"))


def _octets(most: int) -> st.SearchStrategy[bytes]:
    """Any of them, and lengths about that which the kernel keeps."""
    return st.one_of(
        st.binary(max_size=12),
        st.lists(_ODD, max_size=6).map(b"".join),
        st.builds(lambda octet, length: octet * length, _ODD | st.just(b"a"),
                  st.integers(most - 2, most + 2)),
    )  # fmt: skip


_METHODS = st.one_of(
    st.sampled_from((b"GET", b"POST", b"CONNECT", b"OPTIONS", b"BREW", b"get", b"")), _octets(16)
)
_TARGETS = st.one_of(
    st.sampled_from((b"/", b"/items/7?q=1", b"/v1/users/42/files", b"*", b"shop:443", b"")),
    st.sampled_from(
        (b"http://other:81/abs?x", b"HTTPS://me:secret@[::1]/", b"http://h", b"ftp://h/")
    ),
    _octets(HTTP1["request_line"].itemsize).map(lambda octets: b"/" + octets),
    _octets(HTTP1["request_line"].itemsize),
)
_VERSIONS = st.sampled_from((b" HTTP/1.1", b" HTTP/1.0", b" HTTP/1.", b" nonsense", b""))
_LINES = st.one_of(
    st.builds(lambda *parts: parts[0] + b" " + parts[1] + parts[2], _METHODS, _TARGETS, _VERSIONS),
    _octets(HTTP1["request_line"].itemsize),
)
_HOSTS = st.one_of(
    st.sampled_from((b"", b"shop", b"shop:8080", b"[2001:db8::1]:443", b"a:b:c", b"shop:99999")),
    _octets(HTTP1["host"].itemsize),
)
_AGENTS = st.one_of(st.sampled_from((b"", b"curl/8")), _octets(HTTP1["user_agent"].itemsize))
_TRACE_IDS = st.one_of(st.just(_TRACE), st.binary(min_size=16, max_size=16))
_TRACEPARENTS = st.one_of(
    st.just(b""),
    st.builds(
        lambda version, trace_id, parent, flags, rest: (
            f"{version:02x}-{trace_id.hex()}-{parent.hex()}-{flags:02x}".encode() + rest
        ),
        st.sampled_from((0, 0, 1, 255)), _TRACE_IDS, st.binary(min_size=8, max_size=8), _U8,
        st.sampled_from((b"", b"", b"-", b"-x", b"0")),
    ),
    _octets(JOIN["traceparent"].itemsize),
)  # fmt: skip

# ---- records ----

# In any order, and some at the same time. At least one bounds a stage.
_TIMES = st.one_of(st.integers(0, 3), st.integers(0, 1 << 36))
_STAMPS = st.tuples(
    st.dictionaries(
        st.sampled_from([stamp for stamp in Stamp if stamp != Stamp.ACKED]), _TIMES, min_size=1
    ),
    st.none() | _TIMES,
)
_OWN = {
    "request_bytes": _U63,
    "response_bytes": _U63,
    "request_body_bytes": _U63,
    "response_body_bytes": _U63,
    "ordinal": _U63,
    "tid": _U32,
    "flags": _FLAGS,
    "request_retransmits": _U32,
    "response_retransmits": _U32,
    "out_of_order": _U32,
    "peer_port": _PORTS,
    "local_port": _PORTS,
    "status": _STATUSES,
    "pid": st.sampled_from((0, 1, 4242)),
    "peer_address": st.one_of(st.sampled_from(_ADDRESSES), st.binary(min_size=16, max_size=16)),
    "local_address": st.sampled_from(_ADDRESSES),
    "client_told": st.sampled_from((0, CLIENT_TOLD)),
    "client_address": st.sampled_from((bytes(16), *_ADDRESSES)),
    "client_port": _PORTS,
}
_HTTP1 = {"http_minor": st.sampled_from((0, 1))}
_JOIN = {
    "cause_connection_id": _U63,
    "cause_ordinal": _U63,
    "marked": st.sampled_from(tuple(map(int, Said))),
    "trace_flags": _U8,
    "trace_id": _TRACE_IDS,
    "parent_span_id": st.one_of(st.just(bytes(8)), st.binary(min_size=8, max_size=8)),
}
_TEXTS = {
    "request_line": _LINES,
    "host": _HOSTS,
    "user_agent": _AGENTS,
    "traceparent": _TRACEPARENTS,
}
_ONE = st.fixed_dictionaries(
    {
        "own": st.fixed_dictionaries(_OWN),
        "http1": st.fixed_dictionaries(_HTTP1),
        "join": st.fixed_dictionaries(_JOIN),
        "texts": st.fixed_dictionaries(_TEXTS),
        "stamps": _STAMPS,
    }
)


def _records(drawn: list[dict[str, Any]]) -> np.ndarray:
    records = np.zeros(len(drawn), REQUEST_RECORD)
    for i, (record, one) in enumerate(zip(records, drawn, strict=True)):
        # No two requests have the same ids.
        record["connection_id"] = (1 << 40) + i
        record["join"]["span_id"] = np.void(bytes((1 + i,)) + bytes(7))
        _fill(record, one["own"])
        for section in ("http1", "join"):
            _fill(record[section], one[section])
        for name, text in one["texts"].items():
            section = record["join" if name == "traceparent" else "http1"]
            section[name], section[f"{name}_length"] = text, len(text)
        bounds, acked = one["stamps"]
        for stamp, after in (*bounds.items(), (Stamp.ACKED, acked)):
            if after is not None:
                record["stamp_ktime_ns"][stamp] = BEGIN_KTIME_NS + after
    return records


def _fill(row: np.void, values: dict[str, Any]) -> None:
    for name, value in values.items():
        row[name] = np.void(value) if isinstance(value, bytes) else value


#: (n,) REQUEST_RECORD, n at least 1.
RECORDS: st.SearchStrategy[np.ndarray] = st.lists(_ONE, min_size=1, max_size=_MOST).map(_records)

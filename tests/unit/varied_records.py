# SPDX-License-Identifier: Apache-2.0
"""Records that the kernel could have made, of every shape: whatever can vary does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from samples import BEGIN_KTIME_NS, CLIENT_TOLD, address

from otelbpf.kernel.records import REQUEST_RECORD, RequestFlag, Said, Stamp
from otelbpf.ledger.reader import _cut_texts

TRACE = bytes.fromhex("4bf92f3577b34da6a3ce929d0e0e4736")
_CARRIED = f"{TRACE.hex()}-00f067aa0ba902b7"
_TEXTS: dict[tuple[str, str], Sequence[bytes]] = {
    ("http1", "request_line"): (
        b"",
        b"nonsense",
        b"GET / HTTP/1.1",
        b"GET  HTTP/1.0",
        b"GET /items/7?token=s3cret HTTP/1.1",
        b"GET /users/42/files?q=\xe9 HTTP/1.1",
        b"GET /a b c HTTP/1.1",
        b"BREW /pot HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT shop.example:443 HTTP/1.1",
        b"GET http://other.example:81/abs/path?x=1 HTTP/1.1",
        b"GET https://user:password@other.example/abs HTTP/1.1",
        b"GET /caf\xc3\xa9/\xff\xfe\x80 HTTP/1.1",
        b"\xff\xfe /x HTTP/1.1",
        b"POST /a\\b\x00c HTTP/1.1",
        # Exactly what the kernel keeps; more; and cut within the query, a host or a character.
        b"GET /" + b"a" * 178 + b" HTTP/1.1",
        b"GET /" + b"b" * 400 + b" HTTP/1.1",
        b"GET /?" + b"q" * 400 + b" HTTP/1.1",
        b"GET http://" + b"h" * 300 + b"/ HTTP/1.1",
        b"GET /" + "é".encode() * 150 + b" HTTP/1.1",
    ),
    ("http1", "host"): (
        b"",
        b"shop",
        b"shop.example:8080",
        b"[2001:db8::1]:8443",
        b"[::1]",
        b"shop:99999",
        "shop:٣".encode(),
        b"a:b:c",
        b"h" * 64,
        b"h" * 90,
        b"\xff\xfehost:80",
    ),
    ("http1", "user_agent"): (b"", b"curl/8.1", "☃ agent".encode(), b"\xff", b"u" * 96, b"u" * 300),
    ("join", "traceparent"): (
        b"",
        f"00-{_CARRIED}-01".encode(),
        f"00-{_CARRIED}-00".encode(),
        f"01-{_CARRIED}-03-x".encode(),
        f"00-{_CARRIED.upper()}-01".encode(),
        b"00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        b"garbage",
    ),
}
_ADDRESSES = [address(each) for each in ("198.51.100.7", "2001:db8::1", "::1", "::")]
_STATUSES = (0, 101, 200, 204, 301, 404, 499, 500, 503, 999)
_LARGEST = {
    "request_bytes": 1 << 40,
    "response_bytes": 1 << 62,
    "request_body_bytes": 1 << 33,
    "response_body_bytes": 1 << 40,
    "ordinal": 1 << 50,
    "request_retransmits": 3,
    "response_retransmits": 300,
    "out_of_order": 2,
    "tid": 3,
    "peer_port": 1 << 16,
    "local_port": 1 << 16,
    "client_port": 1 << 16,
}


def varied(count: int, seed: int) -> np.ndarray:
    """(count,) REQUEST_RECORD."""
    chance = np.random.default_rng(seed)
    records = np.zeros(count, REQUEST_RECORD)
    for name, largest in _LARGEST.items():
        records[name] = chance.integers(0, largest, count, np.uint64) >> chance.integers(
            0, 63, count, np.uint64
        )
    for (section, name), texts in _TEXTS.items():
        chosen = [texts[i] for i in chance.integers(len(texts), size=count)]
        records[section][name] = chosen
        records[section][f"{name}_length"] = [len(text) for text in chosen]
    for name in ("peer_address", "local_address", "client_address"):
        chosen = [_ADDRESSES[i] for i in chance.integers(len(_ADDRESSES), size=count)]
        records[name] = np.array(chosen, "V16")
    records["client_told"] = CLIENT_TOLD * chance.integers(0, 2, count)
    records["connection_id"] = (1 << 40) + chance.permutation(count)
    records["status"] = chance.choice(_STATUSES, count)
    records["http1"]["http_minor"] = chance.integers(0, 2, count)
    # Any flags, and so any way to end; or one that went well.
    flags = chance.integers(0, 1 << len(RequestFlag), count)
    well = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
    records["flags"] = np.where(
        chance.random(count) < 0.5, flags, well | flags & RequestFlag.CLIENT
    )
    records["stamp_ktime_ns"] = _stamps(chance, count)
    records["pid"] = chance.choice([0, 1, 4242], count)
    records["process"]["start_boottime_ns"] = records["pid"]
    join = records["join"]
    join["cause_connection_id"] = chance.integers(0, 1 << 62, count)
    join["marked"] = chance.choice(list(Said), count)
    join["trace_flags"] = chance.integers(0, 256, count)
    # Of the caller's trace, or of another one.
    others = np.frombuffer(chance.bytes(16 * count), "V16")
    join["trace_id"] = np.where(chance.random(count) < 0.5, np.void(TRACE), others)
    join["span_id"] = np.frombuffer(chance.bytes(8 * count), "V8")
    join["parent_span_id"] = np.frombuffer(chance.bytes(8 * count), "V8")
    join["parent_span_id"][chance.random(count) < 0.3] = np.void(bytes(8))
    _cut_texts(records)
    return records


def _stamps(chance: np.random.Generator, count: int) -> np.ndarray:
    """Any of them but none at all, in any order, some in the same nanosecond."""
    shape = count, len(Stamp)
    spread = np.uint64(1) << chance.integers(1, 36, (count, 1), np.uint64)
    times = BEGIN_KTIME_NS + chance.integers(0, 1 << 36, shape, np.uint64) % spread
    kept = chance.random(shape) < chance.random((count, 1))
    kept[np.arange(count), chance.integers(0, int(Stamp.TC_OUT), count)] = True
    return np.where(kept, times, 0)

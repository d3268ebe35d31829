# SPDX-License-Identifier: Apache-2.0
"""Which trace a request belongs to; for whole batches at once.

Source:
    W3C Trace Context, level 1, section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otelbpf.kernel.records import JOIN, RequestFlag, Said
from otelbpf.ledger.ids import Ids

_TRACEPARENT_LENGTH = 55
_INVALID = 0xFF
_DASHES = (2, 35, 52)


def _nibbles() -> np.ndarray:
    table = np.full(256, _INVALID, np.uint8)
    for value, digit in enumerate(b"0123456789abcdef"):  # upper case is not allowed
        table[digit] = value
    return table


_NIBBLES = _nibbles()


@dataclass(frozen=True)
class Contexts:
    """The trace contexts of n requests.

    Attributes:
        trace_id_high, trace_id_low: (n,) uint64; the caller's, or new.
        span_id: (n,) uint64; for the request's own span.
        parent_span_id: (n,) uint64; the caller's or the cause's; 0 where there is neither.
        flags: (n,) uint8; the caller's trace flags, 0 where none are known.
        called: (n,) bool; a caller's traceparent gave the trace.
        caused: (n,) bool; the parent is another measured request.
        linked_span_id: (n,) uint64; a span of the application's, in the same trace; 0: none known.
        elsewhere: (n,) bool; the application's span is in another trace than the caller's.
        tracestate is not carried on: it stays with the application's own span.
    """

    trace_id_high: np.ndarray
    trace_id_low: np.ndarray
    span_id: np.ndarray
    parent_span_id: np.ndarray
    flags: np.ndarray
    called: np.ndarray
    caused: np.ndarray
    linked_span_id: np.ndarray
    elsewhere: np.ndarray


def contexts_of(records: np.ndarray, ids: Ids) -> Contexts:
    """What applications said of the requests, else the contexts that these carried, else new ones.

    A request to an upstream that has a cause has what its cause has, and that for its parent.

    Args:
        records: (n,) REQUEST_RECORD.
    """
    count = len(records)
    join = records["join"]
    caused = records["flags"] & np.uint32(RequestFlag.CAUSED) != 0
    causes = join[caused]
    # A trace that nobody else started is named after the request that starts it.
    named = ids.of(
        np.concatenate((records["connection_id"], causes["cause_connection_id"])),
        np.concatenate((records["ordinal"], causes["cause_ordinal"])),
    )
    high, low = named.trace_high[:count], named.trace_low[:count]
    high[caused], low[caused] = named.trace_high[count:], named.trace_low[count:]
    contexts = Contexts(
        high,
        low,
        span_id=named.span[:count],
        parent_span_id=np.zeros(count, np.uint64),
        flags=np.zeros(count, np.uint8),
        called=np.zeros(count, bool),
        caused=caused,
        linked_span_id=np.zeros(count, np.uint64),
        elsewhere=np.zeros(count, bool),
    )
    # Most requests of most services carry none, and reading is dear.
    carrying = np.flatnonzero(join["traceparent_length"] >= _TRACEPARENT_LENGTH)
    if carrying.size:
        _read_carried(join[carrying], contexts, carrying)
    contexts.parent_span_id[caused] = named.span[count:]
    marked = np.flatnonzero(join["marked"] == Said.BY_MARK)
    if marked.size:
        _read_marks(join[marked], contexts, marked)
    published = np.flatnonzero(join["marked"] == Said.BY_THREAD)
    if published.size:
        _read_published(join[published], contexts, published)
    return contexts


def _read_marks(join: np.ndarray, contexts: Contexts, rows: np.ndarray) -> None:
    """Puts what the applications said, which is in `join`, into `rows` of `contexts`."""
    trace_id = _big_endian(join["trace_id"])
    contexts.trace_id_high[rows] = trace_id[:, 0]
    contexts.trace_id_low[rows] = trace_id[:, 1]
    own = ~contexts.caused[rows]
    contexts.span_id[rows[own]] = _big_endian(join["span_id"][own])[:, 0]
    contexts.parent_span_id[rows] = _big_endian(join["parent_span_id"])[:, 0]
    contexts.flags[rows] = join["trace_flags"]


def _read_published(join: np.ndarray, contexts: Contexts, rows: np.ndarray) -> None:
    """Joins `rows` of `contexts` to what the threads that answered them have published.

    What a caller said stands: then the application's span is linked where it is of that trace.
    """
    high, low = _big_endian(join["trace_id"]).T
    free = ~contexts.called[rows]
    contexts.trace_id_high[rows[free]] = high[free]
    contexts.trace_id_low[rows[free]] = low[free]
    same = (contexts.trace_id_high[rows] == high) & (contexts.trace_id_low[rows] == low)
    # What was published is about the cause, not about what that has caused.
    own = ~contexts.caused[rows]
    span_id = _big_endian(join["span_id"])[:, 0]
    contexts.linked_span_id[rows] = np.where(same & own, span_id, np.uint64(0))
    contexts.elsewhere[rows] = ~same & own


def _big_endian(octets: np.ndarray) -> np.ndarray:
    """(n, bytes / 8) uint64 of (n,) byte fields."""
    words = np.ascontiguousarray(octets).view(">u8").astype(np.uint64)
    return words.reshape(len(octets), octets.dtype.itemsize // 8)


def _read_carried(join: np.ndarray, contexts: Contexts, rows: np.ndarray) -> None:
    """Puts the contexts that `rows` carry, where they are valid, into those of `contexts`."""
    width = JOIN["traceparent"].itemsize
    text = np.ascontiguousarray(join["traceparent"]).view(np.uint8).reshape(-1, width)
    length = join["traceparent_length"]
    nibbles = _NIBBLES[text[:, :_TRACEPARENT_LENGTH]]
    version = nibbles[:, 0].astype(np.uint16) << 4 | nibbles[:, 1]
    digits = np.delete(nibbles, _DASHES, axis=1)
    octets = digits[:, 0::2] << 4 | digits[:, 1::2] & 0x0F
    words = np.ascontiguousarray(octets[:, 1:25]).view(">u8").astype(np.uint64)
    high, low, parent = words[:, 0], words[:, 1], words[:, 2]
    # A later version may append fields after another dash; 00 may not, ff is forbidden.
    right_length = (length == _TRACEPARENT_LENGTH) | (
        (version > 0) & (text[:, _TRACEPARENT_LENGTH] == ord("-"))
    )
    valid = (
        right_length
        & (digits != _INVALID).all(axis=1)
        & (text[:, list(_DASHES)] == ord("-")).all(axis=1)
        & (version != 0xFF)
        & ((high | low) != 0)
        & (parent != 0)
    )
    rows = rows[valid]
    contexts.trace_id_high[rows] = high[valid]
    contexts.trace_id_low[rows] = low[valid]
    contexts.parent_span_id[rows] = parent[valid]
    contexts.flags[rows] = octets[valid, 25]
    contexts.called[rows] = True

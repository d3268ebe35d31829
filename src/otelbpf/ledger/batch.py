# SPDX-License-Identifier: Apache-2.0
"""reader -> requests: finished requests in columns, and what follows from them.

Nothing is made for each request here: whoever needs Python's own values asks for a column of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from opentelemetry.sdk.resources import Resource

from otelbpf.host.clock import ClockReading
from otelbpf.kernel.records import HTTP1, JOIN, REQUEST_RECORD, RequestFlag, Stamp
from otelbpf.ledger.request import ENDINGS, Kind, bounds_of, stage_name
from otelbpf.ledger.trace_contexts import Contexts

#: Stamps that bound stages.
_STAMPS = int(Stamp.ACKED)
#: That a request becomes at the most.
SPANS_MOST = 1 + (_STAMPS - 1)
# Below a stamp's time in one word; times of nine years since the machine's start leave room for it.
_STAMP_BITS = _STAMPS.bit_length()
_STAMP_MASK = (1 << _STAMP_BITS) - 1
# A stage is numbered by its two stamps; the only stamp of a ledger comes after these.
_PAIRS = _STAMPS * _STAMPS
#: By a stage's number.
STAGE_NAMES = (
    *(stage_name(first, second) for first in range(_STAMPS) for second in range(_STAMPS)),
    *(Stamp(stamp).name.lower() for stamp in range(_STAMPS)),
)
# Of a request line so much is looked at to find where its target begins.
_METHOD_MOST = 15
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_ENDING = np.uint32(RequestFlag.REQUEST_ANSWERED | ENDINGS)


def _sections() -> dict[str, str | None]:
    sections: dict[str, str | None] = dict.fromkeys(REQUEST_RECORD.names or ())
    for section, dtype in (("http1", HTTP1), ("join", JOIN)):
        sections |= dict.fromkeys(dtype.names or (), section)
    return sections


# In which section of a record a field is; None: it is the record's own.
_SECTION_OF = _sections()


@dataclass(frozen=True, eq=False)
class Requests:
    """n finished requests, in any order; a part of them is of the same type.

    Attributes:
        records: (n,) REQUEST_RECORD.
        contexts: of the same requests.
        resources: (n,) of Resource: of their processes, as these were when the records were read.
        clock: converts all times, so that stages tile their request's span.
    """

    records: np.ndarray
    contexts: Contexts
    resources: np.ndarray
    clock: ClockReading

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, rows: slice | np.ndarray) -> Requests:
        return Requests(
            self.records[rows], _taken(self.contexts, rows), self.resources[rows], self.clock
        )

    @classmethod
    def joined(cls, parts: Sequence[Requests]) -> Requests:
        """All of several, one after the other, by the clock of the last ones."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            np.concatenate([part.records for part in parts]),
            Contexts(
                *(
                    np.concatenate([getattr(part.contexts, field.name) for part in parts])
                    for field in fields(Contexts)
                )
            ),
            np.concatenate([part.resources for part in parts]),
            parts[-1].clock,
        )


def sorted_stamps(records: np.ndarray) -> np.ndarray:
    """Those that bound stages; stamps of the same nanosecond keep the order of the way.

    Args:
        records: (n,) REQUEST_RECORD.
    Returns:
        (n, …) int64: in order of time, each one's number below its time; the absent ones, 0, first.
    """
    times = bounds_of(records).astype(np.int64)
    return np.sort(np.where(times != 0, times << _STAMP_BITS | np.arange(_STAMPS), 0), axis=1)


def times_of(stamps: np.ndarray) -> np.ndarray:
    """When they were made, in ns."""
    return stamps >> _STAMP_BITS


def numbers_of(stamps: np.ndarray) -> np.ndarray:
    """Which ones they are."""
    return stamps & _STAMP_MASK


def _ktime_ns(stamps: np.ndarray) -> np.ndarray:
    ktime_ns: np.ndarray = times_of(stamps).astype(np.uint64)
    return ktime_ns


def _taken(contexts: Contexts, rows: slice | np.ndarray) -> Contexts:
    return Contexts(*(getattr(contexts, field.name)[rows] for field in fields(Contexts)))


@dataclass(frozen=True)
class Stages:
    """All stages of all requests of a batch: those of a number together, by number.

    Attributes:
        row: (m,) of which request.
        number: (m,) by which STAGE_NAMES names it.
        start_ktime_ns, end_ktime_ns: (m,) uint64, CLOCK_MONOTONIC.
    """

    row: np.ndarray
    number: np.ndarray
    start_ktime_ns: np.ndarray
    end_ktime_ns: np.ndarray

    @functools.cached_property
    def runs(self) -> list[tuple[int, slice]]:
        """Each number that there is, and where its stages are, which are in the requests' order."""
        edges = np.flatnonzero(np.diff(self.number, prepend=-1, append=-1)).tolist()
        return [
            (int(self.number[begin]), slice(begin, end)) for begin, end in itertools.pairwise(edges)
        ]


class Batch:
    """n finished requests of one kind, those of a resource together.

    A column is asked for by the name of a field of struct request_record or of its sections, or of
    one of the properties here.
    """

    def __init__(self, requests: Requests) -> None:
        self.records = requests.records
        self.contexts = requests.contexts
        self.resources = requests.resources
        self.clock = requests.clock
        self._values: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.records)

    @functools.cached_property
    def kind(self) -> Kind:
        """Of all of them."""
        return Kind.CLIENT if self.records["flags"][0] & RequestFlag.CLIENT else Kind.SERVER

    def column(self, name: str) -> np.ndarray:
        """(n, …)"""
        if name not in _SECTION_OF:
            column: np.ndarray = getattr(self, name)
            return column
        section = _SECTION_OF[name]
        of = self.records if section is None else self.records[section]
        return of[name]

    def values(self, name: str) -> list[Any]:
        """A column as Python's own values, made once."""
        if name not in self._values:
            self._values[name] = self.column(name).tolist()
        return self._values[name]

    @functools.cached_property
    def present(self) -> np.ndarray:
        """(n,) the bits of the stamps that were made."""
        stamps = self.records["stamp_ktime_ns"]
        bits: np.ndarray = (stamps != 0) @ (1 << np.arange(stamps.shape[1]))
        return bits

    @functools.cached_property
    def ending(self) -> np.ndarray:
        """(n,) the flags that say how they ended."""
        return self.records["flags"] & _ENDING

    @functools.cached_property
    def retransmits(self) -> np.ndarray:
        """(n,) of requests and responses together."""
        both: np.ndarray = self.records["request_retransmits"].astype(np.uint64)
        both += self.records["response_retransmits"]
        return both

    @functools.cached_property
    def _names_server(self) -> np.ndarray:
        """(n,) bool: the request line may say which server is asked.

        Nearly all have a target that begins with a slash, and leave that to the Host header; but
        what CONNECT asks for is a server, whatever it begins with.
        """
        lines = self.records["http1"]["request_line"]
        octets = lines[:, np.newaxis].view(np.uint8)
        # No method that is common is longer.
        is_space = octets[:, : _METHOD_MOST + 1] == ord(" ")
        rows, space = np.arange(len(lines)), is_space.argmax(axis=1)
        names: np.ndarray = ~is_space[rows, space] | (octets[rows, space + 1] != ord("/"))
        # No other method that is common begins so.
        names |= octets[:, 0] == ord("C")
        return names

    @functools.cached_property
    def naming_line(self) -> np.ndarray:
        """(n,) the request lines that may say which server is asked; empty where they do not."""
        if not self._names_server.any():
            return np.zeros(len(self), "S1")
        return np.where(self._names_server, self.records["http1"]["request_line"], b"")

    @functools.cached_property
    def naming_line_length(self) -> np.ndarray:
        """(n,) of these."""
        lengths = self.records["http1"]["request_line_length"]
        return np.where(self._names_server, lengths, np.uint16(0))

    @functools.cached_property
    def _client_told(self) -> np.ndarray:
        """(n,) bool: a proxy has said for whom it speaks."""
        told: np.ndarray = self.records["client_told"] != 0
        return told

    @functools.cached_property
    def known_client_address(self) -> np.ndarray:
        """(n,) V16: the one that a proxy tells, else the peer's."""
        peers = self.records["peer_address"]
        if not self._client_told.any():
            return peers
        return np.where(self._client_told, self.records["client_address"], peers)

    @functools.cached_property
    def known_client_port(self) -> np.ndarray:
        """(n,) of the same; 0: it is not told."""
        records = self.records
        ports = np.where(self._client_told, records["client_port"], records["peer_port"])
        return np.where(self.is_client_known, ports, np.uint16(0))

    @functools.cached_property
    def is_client_known(self) -> np.ndarray:
        """(n,) bool: no proxy says that it speaks for somebody, but not for whom."""
        told = self.records["client_address"] != np.void(bytes(16))
        known: np.ndarray = ~self._client_told | told
        return known

    @functools.cached_property
    def elsewhere_trace_id(self) -> np.ndarray:
        """(n,) V16: of the application's own trace, where that is another one; else zeros."""
        found = np.zeros(len(self), "V16")
        rows = self.contexts.elsewhere
        found[rows] = self.records["join"]["trace_id"][rows]
        return found

    @functools.cached_property
    def linked_flags(self) -> np.ndarray:
        """(n,) the trace flags of the application's own span; 0: none is known in this trace."""
        return np.where(
            self.contexts.linked_span_id != 0, self.records["join"]["trace_flags"], np.uint8(0)
        )

    @functools.cached_property
    def _sorted(self) -> np.ndarray:
        return sorted_stamps(self.records)

    @functools.cached_property
    def start_ktime_ns(self) -> np.ndarray:
        """(n,) when the first stamp was made."""
        first = np.argmax(self._sorted != 0, axis=1)
        return _ktime_ns(self._sorted[np.arange(len(self)), first])

    @functools.cached_property
    def end_ktime_ns(self) -> np.ndarray:
        """(n,) when the last stamp that bounds a stage was made."""
        return _ktime_ns(self._sorted[:, -1])

    @functools.cached_property
    def acked_ns(self) -> np.ndarray:
        """(n,) from the end until the peer's TCP acknowledged the response; 0: not seen."""
        acked = self.records["stamp_ktime_ns"][:, Stamp.ACKED]
        return np.where(acked > self.end_ktime_ns, acked - self.end_ktime_ns, np.uint64(0))

    @functools.cached_property
    def stages(self) -> Stages:
        """Neighbouring stamps bound a stage; a single one is a stage without length."""
        stamps = self._sorted
        row, at = np.nonzero(stamps[:, :-1])
        first, second = stamps[row, at], stamps[row, at + 1]
        number = numbers_of(first) * _STAMPS + numbers_of(second)
        alone = np.flatnonzero((stamps[:, -2] == 0) & (stamps[:, -1] != 0))
        if alone.size:
            last = stamps[alone, -1]
            row = np.concatenate((row, alone))
            number = np.concatenate((number, _PAIRS + numbers_of(last)))
            first, second = np.concatenate((first, last)), np.concatenate((second, last))
        # Numbers of 16 bits are sorted in a time that is as long as they are many.
        order = np.argsort(number.astype(np.int16), kind="stable")
        return Stages(row[order], number[order], _ktime_ns(first[order]), _ktime_ns(second[order]))

    def unix_ns(self, ktime_ns: np.ndarray) -> np.ndarray:
        """CLOCK_MONOTONIC ns to ns since the Unix epoch."""
        return ktime_ns + np.uint64(self.clock.offset_ns)

    def stage_span_ids(self) -> np.ndarray:
        """(m,) uint64 of all stages: each follows from its request's and its number; none is 0.

        Source:
            the finalizer of SplitMix64.
        """
        stages = self.stages
        word: np.ndarray = self.contexts.span_id[stages.row] + _GOLDEN * (stages.number + 1).astype(
            np.uint64
        )
        word = (word ^ word >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        word = (word ^ word >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        word ^= word >> np.uint64(31)
        word[word == 0] = 1
        return word

    def runs(self) -> list[tuple[Resource, int, int]]:
        """(resource, begin, end) of each resource's requests, which stand together."""
        changes = np.flatnonzero(np.diff(_ids_of(self.resources)))
        begins = [0, *(changes + 1).tolist()]
        return [
            (self.resources[begin], begin, end)
            for begin, end in zip(begins, [*begins[1:], len(self)], strict=True)
        ]


def batches_of(requests: Requests) -> list[Batch]:
    """Servers' and clients' requests apart, and within each those of a resource together."""
    is_client = requests.records["flags"] & np.uint32(RequestFlag.CLIENT)
    _, first, which = np.unique(_ids_of(requests.resources), return_index=True, return_inverse=True)
    # Resources in the order in which they come first.
    order = np.lexsort((first[which], is_client))
    if (np.diff(order) != 1).any():
        requests, is_client = requests[order], is_client[order]
    servers = int(np.searchsorted(is_client, 1))
    return [
        Batch(requests[part])
        for part in (slice(servers), slice(servers, None))
        if len(requests.records[part])
    ]


def _ids_of(resources: np.ndarray) -> np.ndarray:
    """(n,) by which they are told apart."""
    return np.fromiter(map(id, resources.tolist()), np.int64, len(resources))


def spans_each(records: np.ndarray) -> np.ndarray:
    """(n,) how many spans requests become where their stages are spans.

    Args:
        records: (n,) REQUEST_RECORD.
    """
    spans: np.ndarray = 1 + np.maximum(1, (bounds_of(records) != 0).sum(axis=1) - 1)
    return spans

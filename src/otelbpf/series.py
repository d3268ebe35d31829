# SPDX-License-Identifier: Apache-2.0
"""All requests in sums by series, whatever becomes of them.

The kernel adds requests to the series that they are of (bpf/series.h). What has no place there
yet, or did not end as it should, comes here as a record, and is added up here by the same
rule; a new series then gets its place, and so does a new order of stamps, of which the kernel
is told where its stages are. A snapshot is the sum of both.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from otelbpf.arrays import SERIES_SETS, STAGE_ORDERS
from otelbpf.loader import Programs
from otelbpf.mapped import MappedArray
from otelbpf.records import (
    SERIES,
    SERIES_KEY,
    SERIES_PLACE,
    SERIES_SET,
    STAGE_ORDER,
    STAMP_ORDER,
    RequestFlag,
    Stamp,
)
from otelbpf.request import (
    ENDINGS,
    KINDS,
    Fields,
    Kind,
    Request,
    bounds_of,
    ended_by,
    line_of,
    process_of,
    server_of,
    stage_name,
)
from otelbpf.resource import Resources
from otelbpf.routes import Routes
from otelbpf.sampler import Slow
from otelbpf.snapshot import Exemplar, Histogram, Series, SeriesKey, buckets_of
from otelbpf.spans import METHODS

_STAMPS = len(Stamp)
# Of a stamp's number, below its time.
_STAMP_BITS = 5
_NUMBER = (1 << _STAMP_BITS) - 1
#: Those that bound stages; the others come after the request's end.
_BOUNDS = int(Stamp.ACKED)
_STAGE_PLACES = SERIES["stages"].shape[0]
#: As in bpf/records.h.
_PLACE_FACTOR = 0x9E3779B97F4A7C15
_SERIES_WAYS = SERIES_SET["keys"].shape[0]
#: Where the stages are for which there was no place left.
_OTHER_STAGES = 0
OTHER_STAGES = "other"
# Keys whose place is remembered here; the kernel has ways for twice as many.
_KEYS_MOST = 16_384
_EXEMPLARS_EACH = 4
# Until the name of a key's process is taken for what it will stay, though it is not certain.
_UNCERTAIN_S = 2.0
_NO_ORDER = [0] * STAMP_ORDER["words"].shape[0]
_COUNTS = ("request_bytes", "response_bytes", "retransmits", "out_of_order")


class _Known(NamedTuple):
    """What is known of a key.

    Attributes:
        place: of its series.
        slow_ns: from when on its requests are slow.
        asked_s: when it was first asked for.
        is_settled: it is so for good, and the kernel is told.
    """

    place: int
    slow_ns: int
    asked_s: float
    is_settled: bool


class SeriesTable:
    """The kernel's sums and ours.

    Args:
        programs: whose limits have room for at least three series.
        slow: from when on requests are kept since they were slow.
    """

    def __init__(
        self, programs: Programs, routes: Routes, resources: Resources, slow: Slow
    ) -> None:
        self._lock = threading.Lock()
        self._programs = programs
        self._routes = routes
        self._resources = resources
        self._slow = slow
        self._most = programs.limits.series
        self._mapped_series = MappedArray(programs.map_fd("series"), SERIES, self._most)
        self._kernels = self._mapped_series.values
        self._ours = np.zeros(self._most, SERIES)
        self._mapped_orders = MappedArray(
            programs.map_fd("stage_orders"), STAGE_ORDER, STAGE_ORDERS, writable=True
        )
        self._orders = self._mapped_orders.values
        self._mapped_sets = MappedArray(
            programs.map_fd("series_sets"), SERIES_SET, SERIES_SETS, writable=True
        )
        self._sets = self._mapped_sets.values
        self._next_way = 0
        #: 1 + the place of a stage, by its first stamp and its second; 0: it has none yet.
        self._stage_places = np.zeros(_STAMPS * _STAMPS, np.int64)
        self._stage_names = [OTHER_STAGES]
        # Those for which there is no other place come first; whose they are is not told.
        self._keys = [SeriesKey(kind, resources.of_unknown(), overflow=True) for kind in KINDS]
        self._places: dict[SeriesKey, int] = {}
        self._known: dict[bytes, _Known] = {}
        self._exemplars: dict[int, list[Exemplar]] = {}

    def add(self, records: np.ndarray) -> np.ndarray:
        """Adds requests that the kernel has not added.

        Args:
            records: (n,) REQUEST_RECORD without RequestFlag.IN_SERIES.
        Returns:
            (n,) bool: which of them were slow.
        """
        if not len(records):
            return np.zeros(0, bool)
        with self._lock:
            return self._add(records)

    def _add(self, records: np.ndarray) -> np.ndarray:
        places, slow_ns = self._places_of(records)
        ours = self._ours
        for name in ("request_bytes", "response_bytes", "out_of_order"):
            np.add.at(ours[name], places, records[name])
        for name in ("request_retransmits", "response_retransmits"):
            np.add.at(ours["retransmits"], places, records[name])

        keys = _sorted_stamps(records)
        times = keys >> _STAMP_BITS
        rows, at = np.nonzero(keys[:, :-1])
        stages = self._stages_of(keys[rows, at] & _NUMBER, keys[rows, at + 1] & _NUMBER)
        self._tell_orders(keys)
        lengths = times[rows, at + 1] - times[rows, at]
        np.add.at(ours["stages"]["sum_ns"], (places[rows], stages), lengths.astype(np.uint64))
        np.add.at(ours["stages"]["counts"], (places[rows], stages, buckets_of(lengths)), 1)

        first = np.argmax(keys != 0, axis=1)
        durations = times[:, -1] - times[np.arange(len(times)), first]
        np.add.at(ours["duration"]["sum_ns"], places, durations.astype(np.uint64))
        np.add.at(ours["duration"]["counts"], (places, buckets_of(durations)), 1)

        acked = records["stamp_ktime_ns"][:, Stamp.ACKED].astype(np.int64) - times[:, -1]
        later = np.flatnonzero(acked > 0)
        np.add.at(ours["acked"]["sum_ns"], places[later], acked[later].astype(np.uint64))
        np.add.at(ours["acked"]["counts"], (places[later], buckets_of(acked[later])), 1)
        return durations.astype(np.uint64) >= slow_ns

    def exemplify(self, records: np.ndarray, requests: Sequence[Request], offset_ns: int) -> None:
        """Remembers, for each series, the last ones of these requests, which became spans.

        Args:
            records: (n,) REQUEST_RECORD of the n `requests`.
            offset_ns: from CLOCK_MONOTONIC to Unix time.
        """
        with self._lock:
            self._exemplify(_keys_of(records), requests, offset_ns)

    def _exemplify(self, keys: np.ndarray, requests: Sequence[Request], offset_ns: int) -> None:
        newest: dict[int, list[Exemplar]] = {}
        for key, request in zip(keys[::-1], reversed(requests), strict=True):
            known = self._known.get(key.tobytes())
            if known is None or len(newest.setdefault(known.place, [])) == _EXEMPLARS_EACH:
                continue
            newest[known.place].append(
                Exemplar(
                    request.trace_id,
                    request.span_id,
                    request.end_ktime_ns - request.start_ktime_ns,
                    request.end_ktime_ns + offset_ns,
                )
            )
        for place, exemplars in newest.items():
            exemplars += self._exemplars.get(place, ())
            self._exemplars[place] = exemplars[:_EXEMPLARS_EACH]

    def snapshot(self) -> tuple[Series, ...]:
        """All series that have requests; from any thread."""
        with self._lock:
            return tuple(self._series())

    def _series(self) -> Iterator[Series]:
        for place, key in enumerate(self._keys):
            kernels, ours = self._kernels[place], self._ours[place]
            duration = _histogram(kernels["duration"], ours["duration"])
            if not duration.count:
                continue
            both = kernels["stages"]["counts"] + ours["stages"]["counts"]
            sums = kernels["stages"]["sum_ns"] + ours["stages"]["sum_ns"]
            stages = {
                name: Histogram(int(sums[i]), both[i])
                for i, name in enumerate(self._stage_names)
                if both[i].any()
            }
            counts = {name: int(kernels[name]) + int(ours[name]) for name in _COUNTS}
            exemplars = tuple(self._exemplars.get(place, ()))
            acked = _histogram(kernels["acked"], ours["acked"])
            yield Series(
                key, **counts, duration=duration, stages=stages, acked=acked, exemplars=exemplars
            )

    def close(self) -> None:
        """Unmaps what was mapped."""
        del self._kernels, self._orders, self._sets
        self._mapped_series.close()
        self._mapped_orders.close()
        self._mapped_sets.close()

    # ---- places ----

    def _places_of(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each record's series, and from how many ns on it is slow."""
        keys, firsts, inverse = np.unique(
            _keys_of(records).view(f"V{SERIES_KEY.itemsize}"),
            return_index=True,
            return_inverse=True,
        )
        found = [
            self._known_of(key.tobytes(), records[first])
            for key, first in zip(keys, firsts, strict=True)
        ]
        places = np.array([known.place for known in found])
        slow_ns = np.array([known.slow_ns for known in found], np.uint64)
        inverse = inverse.reshape(-1)
        return places[inverse], slow_ns[inverse]

    def _known_of(self, key: bytes, record: np.void) -> _Known:
        known = self._known.get(key)
        if known is None or not known.is_settled:
            if known is None and len(self._known) >= _KEYS_MOST:
                self._known.clear()
            known = self._known[key] = self._find_place(key, record, known)
        # Also where it was told before: another key may have been given that way.
        if (
            known.is_settled
            and known.place >= len(KINDS)
            and np.frombuffer(key, SERIES_KEY)["status"][0]
        ):
            self._tell_place(key, known.place, known.slow_ns)
        return known

    def _tell_place(self, key: bytes, place: int, slow_ns: int) -> None:
        """Tells the kernel, unless it knows, in a way that it cannot misread at any moment."""
        first, second = np.frombuffer(key, np.uint64).tolist()
        told = self._sets[_index_of(first ^ second, SERIES_SETS)]
        words = told["keys"].view(np.uint64).reshape(_SERIES_WAYS, 2)
        known = words.tolist()
        if [first, second] in known:
            return
        ways = [way for way, words_of_way in enumerate(known) if not words_of_way[1]]  # nobody's
        if not ways:
            ways = [self._next_way]
            self._next_way = (self._next_way + 1) % _SERIES_WAYS
        words[ways[0], 1] = 0
        words[ways[0], 0] = first
        told["places"][ways[0]] = (slow_ns, place, 1)
        words[ways[0], 1] = second

    def _find_place(self, key: bytes, record: np.void, earlier: _Known | None) -> _Known:
        """The series' place, a new one if there is one left, and its threshold."""
        fields, now_s = Fields._make(record.item()), time.monotonic()
        asked_s = now_s if earlier is None else earlier.asked_s
        process = process_of(fields)
        series_key, is_certain = self._series_key(np.frombuffer(key, SERIES_KEY)[0], fields)
        # Who was gone too soon may yet be found to be a fork of somebody. Who listens on a port,
        # and is taken for the reader of what nobody has read, is another one some day.
        is_settled = is_certain or bool(process.pid and now_s - asked_s > _UNCERTAIN_S)
        place = self._places.get(series_key)
        if place is None and len(self._keys) < self._most:
            place = self._places[series_key] = len(self._keys)
            self._keys.append(series_key)
            if len(self._keys) == self._most:
                self._send_the_rest_to_overflow()
        if place is None:
            place = KINDS.index(series_key.kind)
        return _Known(place, self._slow.of(series_key.route), asked_s, is_settled)

    def _send_the_rest_to_overflow(self) -> None:
        for place in range(len(KINDS)):
            self._programs.set_overflow_place(place, _series_place(place, self._slow.of("")))

    def _series_key(self, key: np.void, record: Fields) -> tuple[SeriesKey, bool]:
        """A key in words, and whether it is certain which service it is of."""
        kind = KINDS[key["is_client"]]
        line = line_of(record)
        named = self._resources.of(
            process_of(record), record.local_port if kind is Kind.SERVER else 0
        )
        server = server_of(record, line) if kind is Kind.CLIENT else None
        return (
            SeriesKey(
                kind,
                self._resources.of_service(named.resource),
                line.method if line.method in METHODS else "_OTHER",
                self._routes.template(line.path),
                int(key["status"]),
                "" if key["status"] else ended_by(RequestFlag(int(key["ended_by"])), kind),
                server.port if server else int(key["port"]),
                server.address if server else "",
            ),
            named.is_certain,
        )

    def _stages_of(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """The places of n stages; new ones get one."""
        pairs = first * _STAMPS + second
        for pair in np.unique(pairs[self._stage_places[pairs] == 0]):
            place = _OTHER_STAGES
            if len(self._stage_names) < _STAGE_PLACES:
                place = len(self._stage_names)
                self._stage_names.append(stage_name(*divmod(int(pair), _STAMPS)))
            self._stage_places[pair] = 1 + place
        return self._stage_places[pairs] - 1

    def _tell_orders(self, keys: np.ndarray) -> None:
        """Tells the kernel where the stages of these orders are, as long as there is room.

        Args:
            keys: as _sorted_stamps() gives them; each of their stages has its place.
        """
        for order in np.unique(_orders_of(keys), axis=0):
            words = order.view(np.uint64).tolist()
            at = _index_of_order(words)
            known = self._orders["order"]["words"][[at, at ^ 1]].tolist()
            if words not in known and _NO_ORDER in known:
                told = self._orders[at ^ known.index(_NO_ORDER)]
                numbers = order[order != 0].astype(np.int64) - 1
                told["places"][: len(numbers) - 1] = self._stages_of(numbers[:-1], numbers[1:])
                # The first word last: no order is without it, so the kernel finds all or nothing.
                for i, word in reversed(list(enumerate(words))):
                    told["order"]["words"][i] = word


def _index_of(word: int, count: int) -> int:
    """Where the kernel looks first for a word, in a table of `count` places."""
    return word * _PLACE_FACTOR % 2**64 >> 32 & count - 1


def _index_of_order(words: list[int]) -> int:
    """Where the kernel looks first for an order of stamps."""
    word = 0
    for each in words:
        word = (word * _PLACE_FACTOR ^ each) % 2**64
    return _index_of(word, STAGE_ORDERS)


def _keys_of(records: np.ndarray) -> np.ndarray:
    """(n,) SERIES_KEY, as place_of() of bpf/series.h makes them; no status: it was cut short."""
    keys = np.zeros(len(records), SERIES_KEY)
    is_client = records["flags"] & np.uint32(RequestFlag.CLIENT) != 0
    answered = records["flags"] & np.uint32(RequestFlag.REQUEST_ANSWERED) != 0
    keys["hash"] = records["route_hash"] ^ _hash_processes(records)
    keys["port"] = np.where(is_client, records["peer_port"], records["local_port"])
    keys["status"] = np.where(answered, records["status"], 0)
    keys["ended_by"] = np.where(answered, 0, records["flags"] & np.uint32(ENDINGS))
    keys["is_client"] = is_client
    return keys


def _hash_processes(records: np.ndarray) -> np.ndarray:
    """(n,) uint64, as hash_process() of bpf/series.h finds them."""
    process = records["process"]
    comm = np.ascontiguousarray(process["comm"]).view(np.uint64).reshape(-1, 2)
    hashes = np.zeros(len(records), np.uint64)
    for word in (process["stack"], process["cgroup_id"], comm[:, 0], comm[:, 1]):
        hashes = (hashes ^ word) * np.uint64(_PLACE_FACTOR)
    return np.where(records["pid"] != 0, hashes, np.uint64(0))


def _sorted_stamps(records: np.ndarray) -> np.ndarray:
    """Those that bound stages.

    Returns:
        (n, _BOUNDS) int64: in order of time, each number below its time; the absent ones, 0, first.
    """
    times = bounds_of(records).astype(np.int64)
    return np.sort(np.where(times != 0, times << _STAMP_BITS | np.arange(_BOUNDS), 0), axis=1)


def _orders_of(keys: np.ndarray) -> np.ndarray:
    """(n, bytes of struct stamp_order) uint8: the orders of these stamps."""
    orders = np.zeros((len(keys), STAMP_ORDER.itemsize), np.uint8)
    rows, at = np.nonzero(keys)
    absent = (keys == 0).sum(axis=1)
    orders[rows, at - absent[rows]] = (keys[rows, at] & _NUMBER) + 1
    return orders


def _series_place(place: int, slow_ns: int) -> bytes:
    return np.array((slow_ns, place, 1), SERIES_PLACE).tobytes()


def _histogram(kernels: np.void, ours: np.void) -> Histogram:
    return Histogram(
        int(kernels["sum_ns"]) + int(ours["sum_ns"]), kernels["counts"] + ours["counts"]
    )

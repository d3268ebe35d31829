# SPDX-License-Identifier: Apache-2.0
"""Which series have which places in the kernel's table; those that are used least make room.

A series without a place is added up with all others of its kind that have none, in that kind's
overflow. While places are left the kernel shows requests of keys that it does not know, so that
their series get one. When all are taken it adds such requests to the overflow itself; once a
second, if it did, series that have long had no requests end, and their places are for those that
come next.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from otelbpf.host.resource import Resources
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import SERIES_KEY, RequestFlag, RequestRecordRow
from otelbpf.kernel.rows import octets_of
from otelbpf.ledger.request import KINDS, Kind, ended_by, line_of, process_of, server_of
from otelbpf.metrics.series_sets import SeriesSets, keys_of
from otelbpf.metrics.snapshot import SeriesKey
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Slow
from otelbpf.traces.description import METHODS

# Keys whose place is remembered here; the kernel has ways for twice as many.
_KEYS_MOST = 16_384
# So long the kernel shows what has no place, where what it knew was taken back: most that have one
# have come by then.
_SHOWN_S = 2.0
# Until the name of a key's process is taken for what it will stay, though it is not certain.
_UNCERTAIN_S = 2.0
#: So many series end at a time, if they have had no requests for so long.
ENDING_MOST, SILENT_S = 8, 60.0
#: Where none has, one ends that had none for so long. It shall not be one in use: if more are in
#: use than there are places, they would take each other's all the time.
SILENT_LEAST_S = 20.0
_FIRST = len(KINDS)


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


class Living(NamedTuple):
    """A series that has a place.

    Attributes:
        since_unix_ns: what it has is of after this; 0: of after the agent's start.
    """

    place: int
    key: SeriesKey
    since_unix_ns: int


class SeriesPlaces:
    """The places. Close it to unmap what the kernel is told by.

    Args:
        programs: whose limits have room for at least three series.
        slow: from when on requests are kept since they were slow.
    """

    def __init__(
        self, programs: Programs, routes: Routes, resources: Resources, slow: Slow
    ) -> None:
        self._routes = routes
        self._resources = resources
        self._slow = slow
        self._sets = SeriesSets(programs)
        most = programs.limits.series
        # The overflows come first; whose their requests are is not told.
        overflows = [SeriesKey(kind, resources.of_unknown(), overflow=True) for kind in KINDS]
        self._living: list[Living | None] = [
            *(Living(place, key, 0) for place, key in enumerate(overflows)),
            *(None,) * (most - _FIRST),
        ]
        self._free: list[int] = [*range(most - 1, _FIRST - 1, -1)]
        self._given = _FIRST
        self._places: dict[SeriesKey, int] = {}
        self._known: dict[bytes, _Known] = {}
        self._used_s = np.zeros(most)
        self._shown_until_s: float | None = None
        self._last_end_unix_ns = 0

    @property
    def given(self) -> int:
        """So many places, the first ones, were given to series so far."""
        return self._given

    def living(self) -> Iterator[Living]:
        """All series that have a place."""
        return filter(None, self._living)

    def of(self, records: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The place of each record's series, and from how many ns on it is slow."""
        first_rows: dict[bytes, int] = {}
        first_row = [
            first_rows.setdefault(key, row) for row, key in enumerate(octets_of(keys_of(records)))
        ]
        places, slow_ns = np.empty(len(records), int), np.empty(len(records), np.uint64)
        # In the order in which they came: to the first ones go the places that are left.
        for key, row in first_rows.items():
            known = self._known_of(key, records[row])
            places[row], slow_ns[row] = known.place, known.slow_ns
        return places[first_row], slow_ns[first_row]

    def known(self, records: np.ndarray) -> list[int | None]:
        """The place of each record's series; None: it was not asked for lately."""
        found = map(self._known.get, octets_of(keys_of(records)))
        return [None if known is None else known.place for known in found]

    def end_silent(self, had_requests: np.ndarray, now_s: float) -> list[tuple[int, int]]:
        """Ends series that have long had no requests, if others have no place.

        Args:
            had_requests: (given,) bool, by place: since this was called last.
            now_s: on the monotonic clock.
        Returns:
            of each series that has ended its place, to which the kernel adds nothing any more, and
            that of its kind's overflow. The next ones to come get these places.
        """
        self._used_s[: len(had_requests)][had_requests] = now_s
        if self._shown_until_s is not None and now_s >= self._shown_until_s:
            self._shown_until_s = None
            if not self._free:
                self._add_rest()
        if self._free or not had_requests[:_FIRST].any():
            return []
        silent = self._silent(now_s)
        if not silent:
            return []
        self._sets.forget(silent)
        self._last_end_unix_ns = time.time_ns()
        ended = []
        for place in silent:
            living = self._living[place]
            assert living is not None
            self._living[place] = None
            del self._places[living.key]
            ended.append((place, KINDS.index(living.key.kind)))
        self._free = silent[::-1]
        # What has no place is to be asked for again, too.
        self._known = {
            key: known
            for key, known in self._known.items()
            if known.place >= _FIRST and known.place not in silent
        }
        for overflow in range(_FIRST):
            self._sets.show_rest_of(overflow)
        return ended

    def become(self, routes: Routes, slow: Slow, now_s: float) -> None:
        """These hold from now on.

        Series of routes that there are no more keep what they have, until others need their places.

        Args:
            now_s: on the monotonic clock.
        """
        self._slow = slow
        if routes is not self._routes:
            self._routes = routes
            # Which route a key is of is found again when its next request comes.
            self._sets.forget([each.place for each in self.living() if each.place >= _FIRST])
            self._known.clear()
            if not self._free:
                for overflow in range(_FIRST):
                    self._sets.show_rest_of(overflow)
                self._shown_until_s = now_s + _SHOWN_S
            return
        slow_ns = {place: slow.of(key.route) for place, key, _ in self.living() if place >= _FIRST}
        for place, ns in slow_ns.items():
            self._sets.set_slow(place, ns)
        # What has no place is asked for again: its route is not known here.
        self._known = {
            key: known._replace(slow_ns=slow_ns[known.place])
            for key, known in self._known.items()
            if known.place in slow_ns
        }
        if not self._free and self._shown_until_s is None:
            self._add_rest()

    def _add_rest(self) -> None:
        """Has the kernel itself add what has no place."""
        for overflow in range(_FIRST):
            self._sets.add_rest_at(overflow, self._slow.of(""))

    def close(self) -> None:
        """Unmaps it."""
        self._sets.close()

    def _silent(self, now_s: float) -> list[int]:
        """Places to be taken away, the least recently used one first; all are taken."""
        silent_s = now_s - self._used_s[_FIRST:]
        places = np.argsort(-silent_s, kind="stable")[:ENDING_MOST]
        long = places[silent_s[places] >= SILENT_S]
        if not len(long) and silent_s[places[0]] >= SILENT_LEAST_S:
            long = places[:1]
        taken: list[int] = (long + _FIRST).tolist()
        return taken

    def _known_of(self, key: bytes, record: np.void) -> _Known:
        known = self._known.get(key)
        if known is None or not known.is_settled:
            if known is None and len(self._known) >= _KEYS_MOST:
                self._known.clear()
            known = self._known[key] = self._find(key, record, known)
        # Also where it was told before: another key may have been given that way.
        if (
            known.is_settled
            and known.place >= _FIRST
            and np.frombuffer(key, SERIES_KEY)["status"][0]
        ):
            self._sets.tell(key, known.place, known.slow_ns)
        return known

    def _find(self, key: bytes, record: np.void, earlier: _Known | None) -> _Known:
        """The series' place, a new one if there is one left, and its threshold."""
        fields, now_s = RequestRecordRow(record.item()), time.monotonic()
        asked_s = now_s if earlier is None else earlier.asked_s
        process = process_of(fields)
        series_key, is_certain = self._series_key(np.frombuffer(key, SERIES_KEY)[0], fields)
        # Who was gone too soon may yet be found to be a fork of somebody. Who listens on a port,
        # and is taken for the reader of what nobody has read, is another one some day.
        is_settled = is_certain or bool(process.pid and now_s - asked_s > _UNCERTAIN_S)
        place = self._places.get(series_key)
        if place is None and self._free:
            place = self._give(series_key)
        if place is None:
            place = KINDS.index(series_key.kind)
        return _Known(place, self._slow.of(series_key.route), asked_s, is_settled)

    def _give(self, key: SeriesKey) -> int:
        place = self._places[key] = self._free.pop()
        self._given = max(self._given, place + 1)
        # It may have had a place before, and have ended then or earlier.
        self._living[place] = Living(place, key, self._last_end_unix_ns)
        if not self._free:
            self._add_rest()
        return place

    def _series_key(self, key: np.void, record: RequestRecordRow) -> tuple[SeriesKey, bool]:
        """A key in words, and whether it is certain which service it is of."""
        kind = KINDS[key["is_client"]]
        http1 = record.http1
        line = line_of(http1.request_line, http1.request_line_length)
        named = self._resources.of(
            process_of(record), record.local_port if kind is Kind.SERVER else 0
        )
        server = None
        if kind is Kind.CLIENT:
            server = server_of(
                line, http1.host, http1.host_length, record.peer_address, record.peer_port
            )
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

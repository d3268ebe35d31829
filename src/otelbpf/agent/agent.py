# SPDX-License-Identifier: Apache-2.0
"""The programs and the pipeline behind them, turn by turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import numpy as np

from otelbpf.agent.config import Config
from otelbpf.agent.health import Health
from otelbpf.agent.lookout import Lookout
from otelbpf.agent.pipeline import Pipeline
from otelbpf.kernel.loader import Programs
from otelbpf.ledger.reader import RingReader
from otelbpf.ledger.sweeper import Sweeper
from otelbpf.ledger.tally import Coverage, Lost, Sums
from otelbpf.metrics.connections import ConnectionSums
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.snapshot import Snapshot
from otelbpf.policy.routes import Routes
from otelbpf.userspace.thread_contexts import ThreadContexts

# How often the ring is looked at: a wake-up from the kernel for each record would cost the
# measured server more than all programs together, and many small batches cost the agent more
# than a few large ones. As often as so many may have come, by what came lately; at the latest
# after so long that 100,000 requests a second do not fill the ring.
_SOONEST_S, _LATEST_S = 0.05, 0.25
_WORTH_IT = 1_024
# As long as fewer are in the ring they are left there for so long. Meanwhile it looks whose they
# are, as these processes may be gone soon.
_REST_S = 5.0
_MEET_S = 0.5
# Until a full queue has room again. Such a part of the ring may wait for that: no more, as what
# cannot be sent is to be added up all the same, and until it is there must be room for what comes.
_ROOM_S = 0.01
_MAY_WAIT = 3 / 4
# A part of the sender's queue: as much at once as fits into it would find it not quite empty.
_BATCH = 4_096
_HOUSEKEEPING_S = 1.0
# How often it looks around for what is not measured: while something is not, each turn.
_LOOK_AROUND_S = 1.0
# Without a request for so long it is quiet: it keeps house only as often as it must sweep, until
# the next request comes.
_QUIET_AFTER_S = 10.0
_LAST_RECORD_S = 1.0
# At the stop, until what has no room is counted as lost.
_LAST_ROOM_S = 1.0


class Stop(Protocol):
    """What tells the agent to stop; threading.Event is one."""

    def is_set(self) -> bool:
        """Shall it stop?"""


class Agent:
    """Attached programs and the pipeline behind them.

    Make it, then run() it until `stop` is set.
    """

    def __init__(
        self,
        programs: Programs,
        pipeline: Pipeline,
        series: SeriesTable | None,
        connections: ConnectionSums | None,
        config: Config,
    ) -> None:
        self._programs = programs
        self.pipeline = pipeline
        self._series = series
        self._connections = connections
        self._started_unix_ns = time.time_ns()
        self._reader = RingReader(programs, config.forwarding)
        self._sweeper = Sweeper(programs, int(config.idle_timeout_s * 1e9))
        self._thread_contexts = ThreadContexts(programs)
        self._rest_s = min(_REST_S, config.queue.delay_s)
        self._worth_it = min(_WORTH_IT, config.limits.ring // 4)
        self._read_at = self._meet_at = 0.0
        self._submitted = 0
        self._may_wait = int(_MAY_WAIT * config.limits.ring)
        self._missed: dict[str, int] = {}
        self._coverage: dict[str, Coverage] = {}

    def know(self, pids: Iterable[int]) -> None:
        """Measured servers that run already: their very first requests can be linked and named."""
        pids = tuple(pids)
        self._thread_contexts.saw(pids, time.monotonic())
        for pid in pids:
            self.pipeline.resources.know(pid)

    def become(self, config: Config, routes: Routes, now_s: float) -> None:
        """Goes by this configuration from now on, and by its routes."""
        self.pipeline.become(config)
        self._sweeper.become(int(config.idle_timeout_s * 1e9))
        if self._series is not None:
            self._series.become(routes, config.slow, now_s)

    def run(
        self,
        stop: Stop,
        missed: Callable[[], dict[str, int]],
        lookout: Lookout,
        health: Health,
        each_turn: Callable[[], None] = lambda: None,
    ) -> None:
        """Reads until `stop` is set.

        Args:
            missed: tells how often each hook was passed and its program not run.
            health: is told of each turn, and that no more comes.
            each_turn: is called then.
        """
        came_at = looked_at = look_around_at = time.monotonic()
        housekeeping_at = looked_at + _HOUSEKEEPING_S
        while not stop.is_set():
            each_turn()
            now = time.monotonic()
            is_quiet = now - came_at > _QUIET_AFTER_S
            if now >= look_around_at:
                self._coverage = lookout.look(now, is_quiet=is_quiet)
                health.turns(self._coverage, now)
                if all(each.gap is None for each in self._coverage.values()):
                    look_around_at = now + _LOOK_AROUND_S
            if now >= housekeeping_at:
                self._keep_house(missed)
                seldom_s = self._sweeper.period_s if is_quiet else 0
                housekeeping_at = now + max(_HOUSEKEEPING_S, seldom_s)
            now = time.monotonic()
            count = self._look_at_ring(now)
            if count != 0:
                came_at = now
                if is_quiet:
                    look_around_at = housekeeping_at = now
            if count is None:
                time.sleep(_ROOM_S)
            elif count < _BATCH:
                # What a short queue had no room for may have it soon.
                is_left = self._reader.pending >= self._worth_it
                time.sleep(_ROOM_S if is_left else _pause_s(count, now - looked_at))
            looked_at = now
        health.stops()
        self._missed = missed()

    def _keep_house(self, missed: Callable[[], dict[str, int]]) -> None:
        self.pipeline.refresh()
        self._sweeper.look(time.monotonic_ns())
        self._thread_contexts.refresh(time.monotonic())
        if self._series is not None:
            self._series.refresh(time.monotonic())
        self._missed = missed()

    def _look_at_ring(self, now_s: float) -> int | None:
        """How many have come since it looked last, or were read; None: as _read_batch()."""
        pending = self._reader.pending
        came = self._reader.submitted - self._submitted
        self._submitted += came
        count: int | None = came
        if pending and (now_s >= self._read_at or pending >= self._worth_it):
            read = self._read_batch()
            if read:
                # What a short queue had no room for goes as soon as it has.
                is_left = read < min(pending, self._worth_it)
                self._read_at = now_s if is_left else now_s + self._rest_s
            # Where there is little room few are read, though many come.
            count = None if read is None else max(came, read)
        elif pending and now_s >= self._meet_at:
            self._meet_at = now_s + _MEET_S
            self._meet(self._reader.peek())
        return count

    def _meet(self, records: np.ndarray) -> None:
        """Looks at the processes of requests that are to be read a little later."""
        self._thread_contexts.saw(set(records["pid"].tolist()), time.monotonic())
        self.pipeline.meet(records)

    def drain(self) -> None:
        """After the programs were detached: drains what they left, and sends it."""
        room_by = time.monotonic() + _LAST_ROOM_S
        self._read_all(room_by)
        self._sweeper.finish(time.monotonic_ns())
        self._read_all(room_by)
        self.pipeline.tally.lose(Lost.UNREAD, self._reader.pending)
        self.pipeline.sender.stop()

    def _read_all(self, room_by: float) -> None:
        """Reads until nothing is left; a record that is being written is waited for.

        Args:
            room_by: until then what soon has room waits for that.
        """
        give_up_at = time.monotonic() + _LAST_RECORD_S
        while self._reader.pending and time.monotonic() < give_up_at:
            count = self._read_batch(may_wait=time.monotonic() < room_by)
            if count is None:
                time.sleep(_ROOM_S)
            if count != 0:
                give_up_at = time.monotonic() + _LAST_RECORD_S

    def _read_batch(self, *, may_wait: bool = True) -> int | None:
        """How many were read, and handed on; None: there was no room, but soon there will be.

        Until then they wait in the ring.
        """
        limit = _BATCH
        room = self.pipeline.sender.room() if may_wait else None
        if room is not None:
            limit = min(_BATCH, max(room, self._reader.pending - self._may_wait))
        if limit <= 0:
            return None
        records = self._reader.read(limit)
        if len(records):
            self._thread_contexts.saw(set(records["pid"].tolist()), time.monotonic())
            self.pipeline.take(records)
        return len(records)

    def sums(self) -> Sums:
        """The sums so far."""
        return replace(
            self.pipeline.tally.sums(self._programs.counts()),
            missed=self._missed,
            interfaces=self._coverage,
        )

    def snapshot(self) -> Snapshot:
        """All requests in sums, as they are now; from any thread."""
        return Snapshot(
            start_unix_ns=self._started_unix_ns,
            unix_ns=time.time_ns(),
            resource=self.pipeline.resources.of_agent(),
            series=self._series.snapshot() if self._series is not None else (),
            connections=self._connections.snapshot() if self._connections is not None else (),
            sums=self.sums(),
        )

    def close(self) -> None:
        """Unmaps what was mapped."""
        self._reader.close()


def _pause_s(count: int, in_s: float) -> float:
    """How long to wait until it is worth it to look at the ring again.

    Args:
        count: of requests that came within `in_s`.
    """
    return min(max(_WORTH_IT * in_s / max(count, 1), _SOONEST_S), _LATEST_S)

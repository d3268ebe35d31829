# SPDX-License-Identifier: Apache-2.0
"""Finds requests in flight that have gone silent, in the kernel's table of them."""

from __future__ import annotations

import contextlib

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import EXCHANGE, ExchangeState

#: How long what should follow at once is waited for: a whole response's acknowledgement, the
#: socket's end after the FIN.
ACK_WAIT_NS = 2_000_000_000
# How often the table is looked through, which is dear: more often only where nothing may be silent
# for so long, and more rarely the longer there was nothing to be ended.
_SWEEP_S, _MORE_RARELY = 5.0, 4
# What waits longer is asked for more rarely: there may be thousands of long polls.
_LONGEST_BETWEEN_NS = 30_000_000_000
_NONE, _NEVER = np.empty(0, np.intp), np.empty(0, np.uint64)
# So many slots are mapped at a time: with each 128th one a page begins.
_AT_ONCE = 4_096


class Sweeper:
    """Looks through the table; the kernel then ends what is found, if nothing else will.

    Args:
        idle_ns: how long an unanswered request may be silent that is of no socket known to be open.
    Attributes:
        period_s: how often look() is to be called at least.
    """

    def __init__(self, programs: Programs, idle_ns: int) -> None:
        self._programs = programs
        self._idle_ns = idle_ns
        self.period_s = self._wait_s = min(_SWEEP_S, idle_ns / 1e9)
        self._next_sweep_ns = self._none_ktime_ns = 0
        count = programs.limits.exchanges
        # Of each slot: what it was last asked for, and when it is to be asked for again.
        self._asked_activity = np.zeros(count, np.uint64)
        self._next_ask = np.zeros(count, np.int64)

    def look(self, now_ktime_ns: int) -> None:
        """Once a second: sweeps if it is time to, and if there can be anything to be found.

        There cannot, where no request was in flight a moment ago: none is silent for longer.
        """
        if not self._programs.in_flight():
            self._none_ktime_ns = now_ktime_ns
        shortest_ns = min(ACK_WAIT_NS, self._idle_ns)
        if now_ktime_ns < max(self._next_sweep_ns, self._none_ktime_ns + shortest_ns):
            return
        if self.sweep(now_ktime_ns):
            self._wait_s = self.period_s
        self._next_sweep_ns = now_ktime_ns + int(self._wait_s * 1e9)
        self._wait_s = min(2 * self._wait_s, _MORE_RARELY * self.period_s)

    def sweep(self, now_ktime_ns: int) -> int:
        """Has the kernel end what has been silent for too long; how many it was asked for."""
        # The machine may have been started later than that.
        waited = max(0, now_ktime_ns - ACK_WAIT_NS)
        idle = max(0, now_ktime_ns - self._idle_ns)
        slots, activity = self._silent_since(max(waited, idle))
        due = (self._asked_activity[slots] != activity) | (self._next_ask[slots] <= now_ktime_ns)
        slots, activity = slots[due], activity[due]
        for slot in slots:
            self._programs.sweep(int(slot), waited, idle)
        between = np.clip(
            (now_ktime_ns - activity.astype(np.int64)) // 4,
            0,
            min(_LONGEST_BETWEEN_NS, self._idle_ns // 8),
        )
        self._asked_activity[slots] = activity
        self._next_ask[slots] = now_ktime_ns + between
        return len(slots)

    def finish(self, now_ktime_ns: int) -> None:
        """Ends everything: what is over is reported, the rest counted as lost."""
        slots, _ = self._silent_since(now_ktime_ns)
        for slot in slots:
            self._programs.sweep(int(slot), now_ktime_ns, now_ktime_ns, stopped=True)

    def _silent_since(self, before_ktime_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """Slots in use that were silent since, and when there was activity in each last."""
        # To look through it all takes milliseconds, two thirds of which map it and unmap it.
        if not self._programs.in_flight():
            return _NONE, _NEVER
        found = [
            self._silent_among(begin, before_ktime_ns)
            for begin in range(0, len(self._next_ask), _AT_ONCE)
        ]
        slots, activity = zip(*found, strict=True)
        return np.concatenate(slots), np.concatenate(activity)

    def _silent_among(self, begin: int, before_ktime_ns: int) -> tuple[np.ndarray, np.ndarray]:
        """The same of some slots, from the `begin`th on.

        They are mapped for that only: what is mapped counts as resident.
        """
        count = min(_AT_ONCE, len(self._next_ask) - begin)
        fd = self._programs.map_fd("exchanges")
        with contextlib.closing(MappedArray(fd, EXCHANGE, count, first=begin)) as mapped:
            in_use = np.flatnonzero(mapped.values["state"] >= ExchangeState.IN_FLIGHT)
            activity = mapped.values["activity_ktime_ns"][in_use]
        is_silent = activity <= before_ktime_ns
        return in_use[is_silent] + begin, activity[is_silent]

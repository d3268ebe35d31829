# SPDX-License-Identifier: Apache-2.0
"""Finds requests in flight that have gone silent, in the kernel's table of them."""

from __future__ import annotations

import numpy as np

from otelbpf.loader import Programs
from otelbpf.mapped import MappedArray
from otelbpf.records import EXCHANGE, ExchangeState, RequestFlag

#: How long the acknowledgement of a whole response is waited for.
ACK_WAIT_NS = 2_000_000_000


class Sweeper:
    """Looks through the table; the kernel then ends what is found, if it is still so.

    Args:
        idle_ns: how long an unanswered request may be silent.
    """

    def __init__(self, programs: Programs, idle_ns: int) -> None:
        self._programs = programs
        self._idle_ns = idle_ns
        self._mapped = MappedArray(
            programs.map_fd("exchanges"), EXCHANGE, programs.limits.exchanges
        )
        self._table = self._mapped.values

    def sweep(self, now_ktime_ns: int) -> None:
        """Ends what has been silent for too long."""
        acknowledged_before = now_ktime_ns - ACK_WAIT_NS
        idle_before = now_ktime_ns - self._idle_ns
        silent = self._silent_since(max(acknowledged_before, idle_before))
        if not silent.size:
            return
        # An early answer waits, as an unanswered request does, for the rest of the body.
        # An upstream's whole response waits for its reader, who may well take his time.
        whole = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
        flags = self._table["record"]["flags"][silent]
        answered = flags & (whole | RequestFlag.CLIENT) == whole
        for slots, before_ktime_ns, flag in (
            (silent[answered], acknowledged_before, 0),
            (silent[~answered], idle_before, RequestFlag.IDLE_TIMEOUT),
        ):
            for slot in slots[self._table["activity_ktime_ns"][slots] <= before_ktime_ns]:
                self._programs.sweep(int(slot), before_ktime_ns, flag)

    def finish(self, now_ktime_ns: int) -> None:
        """Ends everything: what was answered is reported, the rest counted as lost."""
        for slot in self._silent_since(now_ktime_ns):
            self._programs.sweep(int(slot), now_ktime_ns, RequestFlag.AGENT_STOPPED)

    def _silent_since(self, before_ktime_ns: int) -> np.ndarray:
        in_use = np.flatnonzero(self._table["state"] >= ExchangeState.IN_FLIGHT)
        return in_use[self._table["activity_ktime_ns"][in_use] <= before_ktime_ns]

    def close(self) -> None:
        """Unmaps the table."""
        del self._table
        self._mapped.close()

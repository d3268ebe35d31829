# SPDX-License-Identifier: Apache-2.0
"""When the kernel is to look for requests in flight that have gone silent, and end them."""

from __future__ import annotations

from otelbpf.kernel.loader import Programs

#: How long what should follow at once is waited for: a whole response's acknowledgement, the
#: socket's end after the FIN.
ACK_WAIT_NS = 2_000_000_000
# How often the table is looked through, which is dear: more often only where nothing may be silent
# for so long, and more rarely the longer there was nothing to be ended.
_SWEEP_S, _MORE_RARELY = 5.0, 4


class Sweeper:
    """Has the kernel look through its table of requests, and end those that nothing else will end.

    Args:
        idle_ns: how long an unanswered request may be silent that is of no socket known to be open.
    Attributes:
        period_s: how often look() is to be called at least.
    """

    def __init__(self, programs: Programs, idle_ns: int) -> None:
        self._programs = programs
        self._none_ktime_ns = 0
        self.become(idle_ns)

    def become(self, idle_ns: int) -> None:
        """So long may such a request be silent from now on."""
        self._idle_ns = idle_ns
        self._shortest_ns = min(ACK_WAIT_NS, idle_ns)
        self.period_s = self._wait_s = min(_SWEEP_S, idle_ns / 1e9)
        self._next_sweep_ns = 0

    def look(self, now_ktime_ns: int) -> None:
        """Once a second: sweeps if it is time to, and if there can be anything to be found.

        There cannot, where no request was in flight a moment ago: none is silent for longer.
        """
        if now_ktime_ns < self._next_sweep_ns - self._shortest_ns:
            return
        if not self._programs.in_flight():
            self._none_ktime_ns = now_ktime_ns
        if now_ktime_ns < max(self._next_sweep_ns, self._none_ktime_ns + self._shortest_ns):
            return
        if self.sweep(now_ktime_ns):
            self._wait_s = self.period_s
        self._next_sweep_ns = now_ktime_ns + int(self._wait_s * 1e9)
        self._wait_s = min(2 * self._wait_s, _MORE_RARELY * self.period_s)

    def sweep(self, now_ktime_ns: int) -> int:
        """Ends what has been silent for too long; tells how many were ended."""
        if not self._programs.in_flight():
            return 0
        # The machine may have been started later than that.
        waited = max(0, now_ktime_ns - ACK_WAIT_NS)
        idle = max(0, now_ktime_ns - self._idle_ns)
        return self._programs.sweep(waited, idle)

    def finish(self, now_ktime_ns: int) -> None:
        """Ends everything: what is over is reported, the rest counted as lost."""
        if self._programs.in_flight():
            self._programs.sweep(now_ktime_ns, now_ktime_ns, stopped=True)

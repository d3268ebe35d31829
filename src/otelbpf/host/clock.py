# SPDX-License-Identifier: Apache-2.0
"""Kernel time to Unix time: the only place that knows both clocks."""

from __future__ import annotations

import time
from dataclasses import dataclass

_TRIES = 32


@dataclass(frozen=True)
class ClockReading:
    """How the two clocks stood to each other at one moment.

    Attributes:
        offset_ns: Unix time minus CLOCK_MONOTONIC.
        uncertainty_ns: the offset is right to within this, either way.
    """

    offset_ns: int
    uncertainty_ns: int

    def unix_ns(self, ktime_ns: int) -> int:
        """CLOCK_MONOTONIC ns, as the kernel stamps, to ns since the Unix epoch."""
        return ktime_ns + self.offset_ns


def read_clock(tries: int = _TRIES) -> ClockReading:
    """Compares the clocks: CLOCK_REALTIME between two reads of CLOCK_MONOTONIC.

    Of `tries` such brackets the narrowest is kept, since nothing can have come
    between its reads but what fits into it.
    """
    return min((_read_once() for _ in range(tries)), key=lambda reading: reading.uncertainty_ns)


def _read_once() -> ClockReading:
    before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    unix = time.clock_gettime_ns(time.CLOCK_REALTIME)
    after = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    return ClockReading(unix - (before + after) // 2, (after - before + 1) // 2)

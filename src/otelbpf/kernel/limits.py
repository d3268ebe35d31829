# SPDX-License-Identifier: Apache-2.0
"""How much the programs may remember."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """How much the programs may remember.

    Attributes:
        connections: the least recently used one goes first; half as many requests may be in flight,
            and more while fewer wait to be read.
        ring: finished requests that may wait to be read.
        series: whose requests are added up; 0: none are.
    """

    connections: int = 65_536
    ring: int = 49_152
    series: int = 0

    @property
    def exchanges(self) -> int:
        """Slots in the table of requests. Of many connections most have none in flight."""
        return self.connections // 2 + self.ring

    @property
    def ring_slots(self) -> int:
        """Places in the ring: a power of two, and one for each slot, so that it has always room."""
        return 1 << (self.exchanges - 1).bit_length()


#: Unless options say otherwise, where series are asked for.
DEFAULT = Limits(series=256)
#: The verifier follows an index into up to 512 MiB: no array may be longer.
MOST = Limits(connections=1 << 19, ring=1 << 16, series=1 << 12)

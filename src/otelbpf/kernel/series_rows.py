# SPDX-License-Identifier: Apache-2.0
"""Which rows of the kernel's table of sums each series has: one, or several.

Processors that add to one row take its cache lines from one another, the more often the more of
them there are. So the series with the first places have several rows: each processor adds to one of
these, and what a series has is their sum. Who comes first mostly is who comes often.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from otelbpf.kernel.records import SERIES

#: So many series have several rows, and so many each has at the most, however many processors there
#: are: 21 MiB.
SPREAD_MOST, EACH_MOST = 32, 8
#: So many processors seldom meet.
_FEW_PROCESSORS = 2
# No two rows share a cache line.
assert SERIES.itemsize % 64 == 0


@dataclass(frozen=True)
class SeriesRows:
    """The rows of all places.

    Attributes:
        places: how many series may have one.
        spread: how many of them, the first ones, have several rows.
        each: how many these have: a power of two.
    """

    places: int
    spread: int = 0
    each: int = 1

    @classmethod
    def of(cls, places: int, processors: int) -> SeriesRows:
        """As many as so many processors need."""
        if processors <= _FEW_PROCESSORS:
            return cls(places)
        return cls(
            places, min(places, SPREAD_MOST), min(EACH_MOST, 1 << (processors - 1).bit_length())
        )

    @property
    def count(self) -> int:
        """Of all places together."""
        return self.end(self.places)

    def rows_of(self, place: int) -> slice:
        """The rows of a series."""
        return slice(self.end(place), self.end(place + 1))

    def cpu_mask(self, place: int) -> int:
        """The bits of a processor's number that say which of these rows it adds to."""
        return self.end(place + 1) - self.end(place) - 1

    def end(self, places: int) -> int:
        """So many rows have the first `places`."""
        return places + min(places, self.spread) * (self.each - 1)

    def sums(self, values: np.ndarray, places: int) -> np.ndarray:
        """(places,) sums of each one's rows, modulo 2**64: of a column of the table."""
        spread = self.end(min(places, self.spread))
        sums: np.ndarray = np.concatenate(
            (
                values[:spread].reshape(-1, self.each).sum(axis=1),
                values[spread : self.end(places)],
            )
        )
        return sums

# SPDX-License-Identifier: Apache-2.0
"""durations -> how they are distributed: nearest-rank percentiles, and a histogram by logarithm."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

BINS_PER_DECADE = 10
#: Bin i holds what is at least edge i and less than edge i + 1. Up to 10^13 ns, nearly three hours.
_EDGES_NS = np.array([np.ceil(10.0 ** (i / BINS_PER_DECADE) - 1e-6) for i in range(131)], np.int64)


@dataclass(frozen=True)
class Distribution:
    """How at least one duration is distributed; all in ns.

    Attributes:
        median_ns, p90_ns, p99_ns: the smallest duration that 50, 90 and 99 of 100 do not exceed
            (nearest rank): always one that was measured, never one between two.
        first_bin, bins: how many durations are in each bin from the first to the last that is not
            empty. Bin i begins at 10^(i / BINS_PER_DECADE) ns; bin 0 has 0 ns, too.
    """

    count: int
    sum_ns: int
    least_ns: int
    median_ns: int
    p90_ns: int
    p99_ns: int
    most_ns: int
    first_bin: int
    bins: tuple[int, ...]


def nearest_rank(ascending: np.ndarray, percent: int) -> int:
    """The smallest of these values that `percent` of 100 do not exceed.

    Args:
        ascending: (n,) int64, n > 0.
        percent: from 1 to 100.
    """
    return int(ascending[-(-percent * len(ascending) // 100) - 1])


def distribution(durations_ns: np.ndarray) -> Distribution:
    """Sums durations up.

    Args:
        durations_ns: (n,) int64, n > 0, none negative.
    """
    ascending = np.sort(durations_ns)
    bins = np.searchsorted(_EDGES_NS, ascending, side="right") - 1
    counts = np.bincount(np.clip(bins, 0, len(_EDGES_NS) - 1))
    first = int(np.flatnonzero(counts)[0])
    return Distribution(
        count=len(ascending),
        sum_ns=sum(ascending.tolist()),
        least_ns=int(ascending[0]),
        median_ns=nearest_rank(ascending, 50),
        p90_ns=nearest_rank(ascending, 90),
        p99_ns=nearest_rank(ascending, 99),
        most_ns=int(ascending[-1]),
        first_bin=first,
        bins=tuple(counts[first:].tolist()),
    )

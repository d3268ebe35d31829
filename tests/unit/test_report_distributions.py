# SPDX-License-Identifier: Apache-2.0
"""Percentiles by nearest rank, bins by logarithm; reasons in words."""

from __future__ import annotations

import random

import numpy as np
import pytest

from otelbpf.ledger.tally import Lost
from otelbpf.report.distributions import BINS_PER_DECADE, Distribution, distribution, nearest_rank
from otelbpf.report.sums import REASONS


@pytest.mark.parametrize(
    ("n", "median", "p90", "p99"),
    [
        (1, 1, 1, 1),
        (2, 1, 2, 2),
        (3, 2, 3, 3),
        (10, 5, 9, 10),
        (11, 6, 10, 11),
        (99, 50, 90, 99),
        (100, 50, 90, 99),
        (101, 51, 91, 100),
        (200, 100, 180, 198),
        (1000, 500, 900, 990),
    ],
)
def test_percentiles_of_the_first_numbers(n: int, median: int, p90: int, p99: int) -> None:
    """The smallest that so many of 100 do not exceed, which is a measured one."""
    values = np.arange(1, n + 1, dtype=np.int64)
    np.random.default_rng(n).shuffle(values)
    found = distribution(values)
    assert (found.median_ns, found.p90_ns, found.p99_ns) == (median, p90, p99)
    assert (found.least_ns, found.most_ns, found.count) == (1, n, n)
    assert found.sum_ns == n * (n + 1) // 2


def test_percentiles_by_their_definition() -> None:
    rng = random.Random(3)
    for _ in range(200):
        values = sorted(rng.randrange(50) for _ in range(rng.randrange(1, 40)))
        for percent in (1, 50, 90, 99, 100):
            smallest = min(
                v for v in values if 100 * sum(w <= v for w in values) >= percent * len(values)
            )
            assert nearest_rank(np.array(values), percent) == smallest


def test_a_distribution_whole() -> None:
    assert distribution(np.array([1_000, 999, 1_258, 1_259, 100_000, 1_000], np.int64)) == (
        Distribution(count=6, sum_ns=105_516, least_ns=999, median_ns=1_000, p90_ns=100_000,
                     p99_ns=100_000, most_ns=100_000, first_bin=29,
                     bins=(1, 3, 1, *[0] * 18, 1))
    )  # fmt: skip


@pytest.mark.parametrize("exponent", range(13))
def test_bins_begin_at_powers_of_ten(exponent: int) -> None:
    at = distribution(np.array([10**exponent], np.int64))
    assert (at.first_bin, at.bins) == (exponent * BINS_PER_DECADE, (1,))
    if exponent > 1:
        assert distribution(np.array([10**exponent - 1], np.int64)).first_bin == at.first_bin - 1


def test_nothing_is_too_short_or_too_long_for_a_bin() -> None:
    found = distribution(np.array([0, 1, 10**13, 1 << 62, 1 << 62], np.int64))
    assert (found.first_bin, found.bins[0], len(found.bins), found.bins[-1]) == (0, 2, 131, 3)
    assert found.sum_ns == 2 * (1 << 62) + 10**13 + 1  # more than 64 bits hold


def test_every_reason_is_in_words() -> None:
    assert REASONS.keys() == set(Lost)

# SPDX-License-Identifier: Apache-2.0
"""Percentiles by nearest rank, bins by logarithm; stamps in words."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from otelbpf.accounting import Lost
from otelbpf.records import Stamp
from otelbpf.report.distributions import BINS_PER_DECADE, Distribution, distribution, nearest_rank
from otelbpf.stamps import (
    WAY,
    Owner,
    ends_of,
    meaning_of,
    owner_of,
    place_of_stage,
    shade_of,
)
from otelbpf.report.sums import REASONS
from otelbpf.request import Kind, stages_of


@pytest.mark.parametrize(
    ("n", "median", "p90", "p99"),
    [(1, 1, 1, 1), (2, 1, 2, 2), (3, 2, 3, 3), (10, 5, 9, 10), (11, 6, 10, 11), (99, 50, 90, 99),
     (100, 50, 90, 99), (101, 51, 91, 100), (200, 100, 180, 198), (1000, 500, 900, 990)],
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
            smallest = min(v for v in values
                           if 100 * sum(w <= v for w in values) >= percent * len(values))
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


def test_every_stamp_is_in_words_and_on_its_way() -> None:
    for stamp in Stamp:
        assert meaning_of(stamp.name.lower())
        assert owner_of(f"x_to_{stamp.name.lower()}", Kind.SERVER) is not Owner.OTHER
    assert set(WAY[Kind.SERVER]) == set(Stamp)
    assert set(WAY[Kind.CLIENT]) == (
        set(Stamp) - {Stamp.ACKED, Stamp.HANDLER_START, Stamp.HANDLER_END}
    )
    assert (meaning_of("hw"), owner_of("hw_to_xyz", Kind.SERVER)) == ("", Owner.OTHER)


def test_every_stages_name_can_be_taken_apart() -> None:
    for first, second in itertools.permutations(Stamp, 2):
        stamps = [0] * len(Stamp)
        stamps[first], stamps[second] = 1, 2
        (stage,) = stages_of(stamps)
        assert ends_of(stage.name) == (first.name.lower(), second.name.lower())
    assert ends_of("tc_out") == ("tc_out", "tc_out")


def test_every_reason_is_in_words() -> None:
    assert REASONS.keys() == set(Lost)


def test_stages_come_by_who_had_the_request_in_the_order_of_the_way() -> None:
    server = ["nic_to_tc", "tc_to_tcp", "tcp_to_queued", "nic_to_nic_last", "nic_last_to_tc",
              "read_to_nic_last", "queued_to_woken", "queued_to_running", "queued_to_read",
              "woken_to_running", "running_to_read", "nic_last_to_read_last", "read_to_write",
              "handler_start_to_handler_end", "handler_start_to_write", "tc_out_to_write_last",
              "write_to_tc_out", "tc_out_to_acked", "xyz_to_hw"]  # fmt: skip
    client = ["tc_out_to_write_last", "write_to_tc_out", "tc_out_to_nic", "read_to_nic_last",
              "nic_to_tc", "tc_to_tcp", "queued_to_read", "xyz_to_hw"]  # fmt: skip
    for kind, way in ((Kind.SERVER, server), (Kind.CLIENT, client)):
        assert sorted(sorted(way), key=lambda name: place_of_stage(name, kind)) == way


def test_who_had_the_request() -> None:
    for stage, owner in (("nic_to_tc", Owner.RECEIVE), ("queued_to_running", Owner.WAITING),
                         ("read_to_write", Owner.APPLICATION), ("write_to_tc_out", Owner.SEND),
                         ("tc_out_to_acked", Owner.PEER)):
        assert owner_of(stage, Kind.SERVER) is owner
    assert owner_of("tc_out_to_nic", Kind.CLIENT) is Owner.PEER
    assert owner_of("tc_out_to_nic", Kind.SERVER) is Owner.RECEIVE


def test_neighbours_of_one_owner_differ_in_shade() -> None:
    ways = ("nic tc tcp queued woken running read handler_start handler_end write tc_out acked",
            "nic tc tcp queued read nic_last read_last write tc_out write_last tc_out_last acked")
    for way in ways:
        names = [f"{a}_to_{b}" for a, b in itertools.pairwise(way.split())]
        looks = [(owner_of(name, Kind.SERVER), shade_of(name)) for name in names]
        assert all(one != other for one, other in itertools.pairwise(looks)), looks

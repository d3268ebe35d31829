# SPDX-License-Identifier: Apache-2.0
"""The stages of one ledger tile it, whichever stamps there are and in whatever order."""

from __future__ import annotations

import itertools
import random

import pytest
from samples import BEGIN_KTIME_NS, WHOLE, request

from otelbpf.kernel.records import RequestFlag, Stamp
from otelbpf.ledger.request import Stage, stages_of

#: Those that bound stages; the others come after a request's end.
BOUNDS = tuple(stamp for stamp in Stamp if stamp < Stamp.ACKED)


def check_tiles(stamps: list[int]) -> None:
    """Everything that must hold of any stamps that bound stages."""
    bounds = {stamp: stamps[stamp] for stamp in BOUNDS if stamps[stamp]}
    present = list(bounds.values())
    stages = stages_of(stamps)
    assert len(stages) == max(1, len(present) - 1)
    assert stages[0].start_ktime_ns == min(present)
    assert stages[-1].end_ktime_ns == max(present)
    for stage in stages:
        assert stage.start_ktime_ns <= stage.end_ktime_ns
    for one, next_one in itertools.pairwise(stages):
        assert one.end_ktime_ns == next_one.start_ktime_ns
        assert one.name.split("_to_")[1] == next_one.name.split("_to_")[0]
    assert sum(s.end_ktime_ns - s.start_ktime_ns for s in stages) == max(present) - min(present)
    if len(present) > 1:
        ends = [stages[0].name.split("_to_")[0], *(s.name.split("_to_")[1] for s in stages)]
        times = [stages[0].start_ktime_ns, *(s.end_ktime_ns for s in stages)]
        by_name = {stamp.name.lower(): at for stamp, at in bounds.items()}
        assert dict(zip(ends, times, strict=True)) == by_name


def test_every_subset_in_the_order_of_the_way() -> None:
    for bits in range(1, 1 << len(BOUNDS)):
        check_tiles([BEGIN_KTIME_NS + 17 * i**3 if bits >> i & 1 else 0 for i in BOUNDS])


def test_every_subset_in_any_order_with_ties() -> None:
    random_ = random.Random(4711)
    for bits in range(1, 1 << len(BOUNDS)):
        span = random_.choice((1, 3, 1_000_000_000))  # 1: all at once; 3: many ties
        check_tiles(
            [BEGIN_KTIME_NS + random_.randrange(span) if bits >> i & 1 else 0 for i in BOUNDS]
        )


def test_every_order_of_five_stamps() -> None:
    chosen = (Stamp.NIC, Stamp.QUEUED, Stamp.READ, Stamp.READ_LAST, Stamp.WRITE)
    for order in itertools.permutations(range(5)):
        stamps = [0] * len(BOUNDS)
        for stamp, place in zip(chosen, order, strict=True):
            stamps[stamp] = BEGIN_KTIME_NS + place
        check_tiles(stamps)


def stamps_of(**after_ns: int) -> list[int]:
    stamps = [0] * len(BOUNDS)
    for name, after in after_ns.items():
        stamps[Stamp[name.upper()]] = BEGIN_KTIME_NS + after
    return stamps


def test_stages_are_named_after_their_stamps() -> None:
    stages = stages_of(stamps_of(nic=0, tc=1, read=5, tc_out=9, tc_out_last=9, ended=30))
    assert [(s.name, s.end_ktime_ns - s.start_ktime_ns) for s in stages] == [
        ("nic_to_tc", 1),
        ("tc_to_read", 4),
        ("read_to_tc_out", 4),
        ("tc_out_to_tc_out_last", 0),
        ("tc_out_last_to_ended", 21),
    ]


def test_stamps_of_one_nanosecond_keep_the_order_of_the_way() -> None:
    everything = [BEGIN_KTIME_NS] * len(BOUNDS)
    assert [s.name for s in stages_of(everything)] == [
        f"{one.name}_to_{other.name}".lower() for one, other in itertools.pairwise(BOUNDS)
    ]


def test_the_order_of_time_goes_before_the_order_of_the_way() -> None:
    """A large body: the application reads its first bytes before the last have arrived."""
    stages = stages_of(stamps_of(nic=0, read=10, nic_last=50, read_last=60))
    assert [s.name for s in stages] == ["nic_to_read", "read_to_nic_last", "nic_last_to_read_last"]


def test_a_single_stamp() -> None:
    at = BEGIN_KTIME_NS + 3
    assert stages_of(stamps_of(tc=3)) == (Stage("tc", at, at),)
    made = request({Stamp.TC: 3})
    assert (made.start_ktime_ns, made.end_ktime_ns) == (at, at)


def test_a_request_lasts_from_its_first_stamp_to_its_last() -> None:
    made = request({Stamp.READ: 3, Stamp.NIC: 9, Stamp.TC: 1})  # clocks of two CPUs
    assert made.start_ktime_ns == BEGIN_KTIME_NS + 1
    assert made.end_ktime_ns == BEGIN_KTIME_NS + 9


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        # The server's handler goes on, and so does a body that came too late for the answer.
        (WHOLE, ["nic_to_read", "read_to_tc_out", "tc_out_to_tc_out_last"]),
        # A response that is not whole has no end of its own.
        (RequestFlag.REQUEST_RECEIVED,
         ["nic_to_read", "read_to_tc_out", "tc_out_to_tc_out_last", "tc_out_last_to_read_last",
          "read_last_to_handler_end"]),
        # An upstream's request ends with the read of its response.
        (WHOLE | RequestFlag.CLIENT,
         ["nic_to_read", "read_to_tc_out", "tc_out_to_tc_out_last", "tc_out_last_to_read_last",
          "read_last_to_handler_end"]),
    ],
)  # fmt: skip
def test_what_comes_after_a_servers_response_has_left_bounds_no_stage(
    flags: RequestFlag, names: list[str]
) -> None:
    made = request(
        {Stamp.NIC: 0, Stamp.READ: 3, Stamp.TC_OUT: 5, Stamp.TC_OUT_LAST: 9, Stamp.READ_LAST: 10,
         Stamp.HANDLER_END: 11}, flags=flags,
    )  # fmt: skip
    assert [stage.name for stage in made.stages] == names


def test_what_comes_after_a_request_was_cut_short_bounds_no_stage() -> None:
    made = request(
        {Stamp.NIC: 0, Stamp.READ: 10, Stamp.ENDED: 30, Stamp.READ_LAST: 30, Stamp.HANDLER_END: 31},
        flags=RequestFlag.REQUEST_RECEIVED,
    )  # fmt: skip
    assert [s.name for s in made.stages] == [
        "nic_to_read",
        "read_to_read_last",
        "read_last_to_ended",
    ]


@pytest.mark.parametrize(("acked_ns", "after_ns"), [(30, 21), (9, 0), (8, 0)])
def test_an_acknowledgement_comes_after_the_end_and_bounds_no_stage(
    acked_ns: int, after_ns: int
) -> None:
    """Nor does one that came before its last byte had left once more."""
    made = request({Stamp.NIC: 0, Stamp.TC_OUT: 9, Stamp.ACKED: acked_ns})
    assert [stage.name for stage in made.stages] == ["nic_to_tc_out"]
    assert (made.end_ktime_ns, made.acked_ns) == (BEGIN_KTIME_NS + 9, after_ns)


def test_the_largest_times_stay_exact() -> None:
    stages = stages_of([(1 << 64) - 3, (1 << 64) - 1])
    assert stages == (Stage("nic_to_tc", (1 << 64) - 3, (1 << 64) - 1),)

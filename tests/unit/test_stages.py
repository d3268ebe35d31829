# SPDX-License-Identifier: Apache-2.0
"""The stages of one ledger tile it, whichever stamps there are and in whatever order."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator

import numpy as np
import pytest
from samples import BEGIN_KTIME_NS, CLOCK, RESOURCE, WHOLE, contexts, requests
from support.stages import Stage, stages_of

from otelbpf.kernel.records import REQUEST_RECORD, RequestFlag, Stamp
from otelbpf.ledger.batch import STAGE_NAMES, Batch, Requests

#: Those that bound stages; the others come after a request's end.
BOUNDS = tuple(stamp for stamp in Stamp if stamp < Stamp.ACKED)


# As many requests as are made at once: a record is 776 bytes.
MOST = 8_192


def stages(batch: Batch) -> list[tuple[Stage, ...]]:
    """Those of each request, in the order of time and of the way."""
    columns = batch.stages
    found: list[list[tuple[int, int, Stage]]] = [[] for _ in range(len(batch))]
    for row, number, start, end in zip(
        columns.row.tolist(), columns.number.tolist(),
        columns.start_ktime_ns.tolist(), columns.end_ktime_ns.tolist(), strict=True,
    ):  # fmt: skip
        found[row].append((start, number, Stage(STAGE_NAMES[number], start, end)))
    return [tuple(stage for _, _, stage in sorted(each)) for each in found]


def batch_of(all_stamps: list[list[int]]) -> Batch:
    """Clients' requests: of those every stamp bounds a stage, but for what comes after the end."""
    records = np.zeros(len(all_stamps), REQUEST_RECORD)
    records["flags"] = WHOLE | RequestFlag.CLIENT
    for record, stamps in zip(records, all_stamps, strict=True):
        record["stamp_ktime_ns"][: len(stamps)] = stamps
    of_all = np.array([RESOURCE] * len(records), object)
    return Batch(Requests(records, contexts(len(records)), of_all, CLOCK))


def stages_by_columns(stamps: list[int]) -> tuple[Stage, ...]:
    """Those of one request."""
    (found,) = stages(batch_of([stamps]))
    return found


def check_tiles(all_stamps: Iterator[list[int]]) -> None:
    """Everything that must hold of any stamps."""
    while some := list(itertools.islice(all_stamps, MOST)):
        batch = batch_of(some)
        starts, ends = batch.start_ktime_ns.tolist(), batch.end_ktime_ns.tolist()
        for times, tiled, start, end in zip(some, stages(batch), starts, ends, strict=True):
            # What comes after the end of a request that was cut short bounds no stage.
            stamps = [at if at <= (times[Stamp.ENDED] or at) else 0 for at in times]
            check(stamps, tiled)
            assert (start, end) == (tiled[0].start_ktime_ns, tiled[-1].end_ktime_ns)
            assert tiled == stages_of(stamps)


def check(stamps: list[int], stages: tuple[Stage, ...]) -> None:
    """The same of those that bound one request's stages."""
    bounds = {stamp: stamps[stamp] for stamp in BOUNDS if stamps[stamp]}
    present = list(bounds.values())
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
    check_tiles(
        [BEGIN_KTIME_NS + 17 * i**3 if bits >> i & 1 else 0 for i in BOUNDS]
        for bits in range(1, 1 << len(BOUNDS))
    )


def test_every_subset_in_any_order_with_ties() -> None:
    random_ = random.Random(4711)

    def subsets() -> Iterator[list[int]]:
        for bits in range(1, 1 << len(BOUNDS)):
            span = random_.choice((1, 3, 1_000_000_000))  # 1: all at once; 3: many ties
            times = [BEGIN_KTIME_NS + random_.randrange(span) if bits >> i & 1 else 0
                     for i in BOUNDS]  # fmt: skip
            yield times

    check_tiles(subsets())


def test_every_order_of_five_stamps() -> None:
    chosen = (Stamp.NIC, Stamp.QUEUED, Stamp.READ, Stamp.READ_LAST, Stamp.WRITE)

    def orders() -> Iterator[list[int]]:
        for order in itertools.permutations(range(5)):
            stamps = [0] * len(BOUNDS)
            for stamp, place in zip(chosen, order, strict=True):
                stamps[stamp] = BEGIN_KTIME_NS + place
            yield stamps

    check_tiles(orders())


def stamps_of(**after_ns: int) -> list[int]:
    stamps = [0] * len(BOUNDS)
    for name, after in after_ns.items():
        stamps[Stamp[name.upper()]] = BEGIN_KTIME_NS + after
    return stamps


def test_stages_are_named_after_their_stamps() -> None:
    found = stages_by_columns(stamps_of(nic=0, tc=1, read=5, tc_out=9, tc_out_last=9, ended=30))
    assert [(s.name, s.end_ktime_ns - s.start_ktime_ns) for s in found] == [
        ("nic_to_tc", 1),
        ("tc_to_read", 4),
        ("read_to_tc_out", 4),
        ("tc_out_to_tc_out_last", 0),
        ("tc_out_last_to_ended", 21),
    ]


def test_stamps_of_one_nanosecond_keep_the_order_of_the_way() -> None:
    everything = [BEGIN_KTIME_NS] * len(BOUNDS)
    assert [s.name for s in stages_by_columns(everything)] == [
        f"{one.name}_to_{other.name}".lower() for one, other in itertools.pairwise(BOUNDS)
    ]


def test_the_order_of_time_goes_before_the_order_of_the_way() -> None:
    """A large body: the application reads its first bytes before the last have arrived."""
    found = stages_by_columns(stamps_of(nic=0, read=10, nic_last=50, read_last=60))
    assert [s.name for s in found] == ["nic_to_read", "read_to_nic_last", "nic_last_to_read_last"]


def ends_of(batch: Batch) -> tuple[int, int]:
    """When its one request began and ended."""
    (start,), (end,) = batch.start_ktime_ns.tolist(), batch.end_ktime_ns.tolist()
    return start, end


def names_of(made: Requests) -> list[str]:
    """Of the stages of the one request."""
    (found,) = stages(Batch(made))
    return [stage.name for stage in found]


def test_a_single_stamp() -> None:
    at = BEGIN_KTIME_NS + 3
    assert stages_by_columns(stamps_of(tc=3)) == (Stage("tc", at, at),)
    assert ends_of(Batch(requests({Stamp.TC: 3}))) == (at, at)


def test_a_request_lasts_from_its_first_stamp_to_its_last() -> None:
    made = Batch(requests({Stamp.READ: 3, Stamp.NIC: 9, Stamp.TC: 1}))  # clocks of two CPUs
    assert ends_of(made) == (BEGIN_KTIME_NS + 1, BEGIN_KTIME_NS + 9)


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
    made = requests(
        {Stamp.NIC: 0, Stamp.READ: 3, Stamp.TC_OUT: 5, Stamp.TC_OUT_LAST: 9, Stamp.READ_LAST: 10,
         Stamp.HANDLER_END: 11}, flags=flags,
    )  # fmt: skip
    assert names_of(made) == names


def test_what_comes_after_a_request_was_cut_short_bounds_no_stage() -> None:
    made = requests(
        {Stamp.NIC: 0, Stamp.READ: 10, Stamp.ENDED: 30, Stamp.READ_LAST: 30, Stamp.HANDLER_END: 31},
        flags=RequestFlag.REQUEST_RECEIVED,
    )  # fmt: skip
    assert names_of(made) == [
        "nic_to_read",
        "read_to_read_last",
        "read_last_to_ended",
    ]


@pytest.mark.parametrize(("acked_ns", "after_ns"), [(30, 21), (9, 0), (8, 0)])
def test_an_acknowledgement_comes_after_the_end_and_bounds_no_stage(
    acked_ns: int, after_ns: int
) -> None:
    """Nor does one that came before its last byte had left once more."""
    made = requests({Stamp.NIC: 0, Stamp.TC_OUT: 9, Stamp.ACKED: acked_ns})
    assert names_of(made) == ["nic_to_tc_out"]
    batch = Batch(made)
    assert (ends_of(batch)[1], batch.acked_ns.tolist()) == (BEGIN_KTIME_NS + 9, [after_ns])


def test_the_largest_times_stay_exact() -> None:
    """Those of nine years: a stamp's number lies below its time in the same word."""
    first, second = (1 << 58) - 3, (1 << 58) - 1
    stamps = [first, *[0] * (Stamp.ENDED - 1), second]
    assert stages_by_columns(stamps) == (Stage("nic_to_ended", first, second),)
    stages = stages_of([(1 << 64) - 3, (1 << 64) - 1])
    assert stages == (Stage("nic_to_tc", (1 << 64) - 3, (1 << 64) - 1),)

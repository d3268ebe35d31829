# SPDX-License-Identifier: Apache-2.0
"""Requests in columns: what is computed of them, how they are joined and cut, and in what order."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
from opentelemetry.sdk.resources import Resource
from samples import BEGIN_KTIME_NS, CLOCK, RESOURCE, SMALL, WHOLE, numbered, requests
from support.stages import stages_of
from varied_records import varied

from otelbpf.host.clock import ClockReading
from otelbpf.kernel.records import HTTP1, JOIN, REQUEST_RECORD, RequestFlag, Stamp
from otelbpf.ledger.batch import (
    SPANS_MOST,
    STAGE_NAMES,
    Batch,
    Requests,
    batches_of,
    numbers_of,
    sorted_stamps,
    spans_each,
    times_of,
)
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.request import Kind, bounds_of, text_of
from otelbpf.ledger.trace_contexts import Contexts, contexts_of
from otelbpf.protocols.urls import split_request_line

OTHER = Resource({"service.name": "till"})
CLIENT = WHOLE | RequestFlag.CLIENT


def of(records: np.ndarray, resources: Sequence[Resource] = (RESOURCE,)) -> Requests:
    """Requests of these records, whose resources take turns."""
    of_each = np.empty(len(records), object)
    of_each[:] = [resources[i % len(resources)] for i in range(len(records))]
    return Requests(records, contexts_of(records, Ids(bytes(16))), of_each, CLOCK)


def joined(*parts: Requests) -> Batch:
    return Batch(Requests.joined(parts))


def named(batch: Batch) -> list[tuple[int, str, int, int]]:
    """(of which request, name, start, end) of each stage, ns after the first stamp."""
    stages = batch.stages
    return [
        (row, STAGE_NAMES[number], start - BEGIN_KTIME_NS, end - BEGIN_KTIME_NS)
        for row, number, start, end in zip(
            stages.row.tolist(), stages.number.tolist(), stages.start_ktime_ns.tolist(),
            stages.end_ktime_ns.tolist(), strict=True,
        )
    ]  # fmt: skip


# ---- columns ----


def test_when_they_began_and_ended() -> None:
    batch = joined(
        requests({Stamp.NIC: 5, Stamp.READ: 9, Stamp.TC_OUT: 20, Stamp.ACKED: 50}),
        requests({Stamp.READ: 7, Stamp.NIC: 8}),
        requests({Stamp.TC: 3}),
        # A server's handler goes on after its response; an upstream's response is read.
        requests({Stamp.NIC: 0, Stamp.TC_OUT: 6, Stamp.HANDLER_END: 8, Stamp.ACKED: 7}),
        requests({Stamp.NIC: 0, Stamp.TC_OUT: 6, Stamp.READ: 8}, flags=CLIENT),
        # Its last byte has left once more since.
        requests({Stamp.NIC: 0, Stamp.TC_OUT: 6, Stamp.ACKED: 5}),
    )
    assert (batch.start_ktime_ns - BEGIN_KTIME_NS).tolist() == [5, 7, 3, 0, 0, 0]
    assert (batch.end_ktime_ns - BEGIN_KTIME_NS).tolist() == [20, 8, 3, 6, 8, 6]
    assert batch.acked_ns.tolist() == [30, 0, 0, 1, 0, 0]
    assert batch.unix_ns(batch.start_ktime_ns).tolist() == [
        CLOCK.unix_ns(BEGIN_KTIME_NS + after) for after in (5, 7, 3, 0, 0, 0)
    ]
    for column in (batch.start_ktime_ns, batch.end_ktime_ns, batch.acked_ns):
        assert column.dtype == np.uint64


def test_stages_of_several_requests_at_once() -> None:
    batch = joined(
        requests({Stamp.NIC: 0, Stamp.READ: 4, Stamp.TC_OUT: 9}),
        requests({Stamp.TC: 3}),
        requests({Stamp.READ: 7, Stamp.NIC: 8}),
        requests({Stamp.TC_OUT: 2}),
    )
    assert sorted(named(batch)) == [
        (0, "nic_to_read", 0, 4), (0, "read_to_tc_out", 4, 9), (1, "tc", 3, 3),
        (2, "read_to_nic", 7, 8), (3, "tc_out", 2, 2),
    ]  # fmt: skip


def test_stamps_of_one_nanosecond() -> None:
    stamps = dict.fromkeys(SMALL, 7) | {Stamp.ACKED: 7}
    batch = Batch(requests(stamps))
    assert [name for _, name, _, _ in sorted(named(batch), key=lambda stage: list(SMALL).index(
        Stamp[stage[1].split("_to_")[0].upper()]
    ))] == [
        "nic_to_tc", "tc_to_tcp", "tcp_to_queued", "queued_to_woken", "woken_to_running",
        "running_to_read", "read_to_write", "write_to_tc_out",
    ]  # fmt: skip
    assert {(start, end) for _, _, start, end in named(batch)} == {(7, 7)}
    assert batch.acked_ns.tolist() == [0]


@pytest.mark.parametrize("stamp", [stamp for stamp in Stamp if stamp < Stamp.ACKED])
def test_a_single_stamp_is_a_stage_without_length(stamp: Stamp) -> None:
    assert named(Batch(requests({stamp: 3}))) == [(0, stamp.name.lower(), 3, 3)]
    assert named(Batch(requests({stamp: 3, Stamp.ACKED: 9}))) == [(0, stamp.name.lower(), 3, 3)]


def test_stages_tile_all_requests_that_there_can_be() -> None:
    for seed in range(4):
        for batch in batches_of(of(varied(2_000, seed))):
            tiled = [stages_of(stamps) for stamps in bounds_of(batch.records).tolist()]
            found = sorted(named(batch))
            assert found == sorted(
                (row, stage.name, stage.start_ktime_ns - BEGIN_KTIME_NS,
                 stage.end_ktime_ns - BEGIN_KTIME_NS)
                for row, stages in enumerate(tiled) for stage in stages
            )  # fmt: skip
            lengths = np.zeros(len(batch), np.uint64)
            stages = batch.stages
            np.add.at(lengths, stages.row, stages.end_ktime_ns - stages.start_ktime_ns)
            assert (lengths == batch.end_ktime_ns - batch.start_ktime_ns).all()
            each = np.bincount(stages.row, minlength=len(batch))
            assert (each == spans_each(batch.records) - 1).all()
            assert each.max() < SPANS_MOST


def test_the_ids_of_stages_are_unlike_all_others() -> None:
    for batch in batches_of(of(varied(5_000, 3))):
        ids = batch.stage_span_ids()
        assert ids.dtype == np.uint64
        assert len(ids) == len(batch.stages.row)
        assert 0 not in ids
        assert len(np.unique(np.concatenate((ids, batch.contexts.span_id)))) == len(ids) + len(
            np.unique(batch.contexts.span_id)
        )


def test_the_ids_of_stages_follow_from_their_requests() -> None:
    """In whichever batch they are, and at whichever place there."""
    one, other = requests(), numbered(1)
    alone = Batch(one).stage_span_ids().tolist()
    assert Batch(one).stage_span_ids().tolist() == alone
    both = joined(other, one)
    assert both.stage_span_ids()[both.stages.row == 1].tolist() == alone
    assert len(set(both.stage_span_ids().tolist())) == 2 * len(alone)


def test_no_id_of_a_stage_is_zero() -> None:
    made = Requests.joined([requests({stamp: 1}) for stamp in Stamp if stamp < Stamp.ACKED])
    # Of these spans each one's stage is what becomes of 0.
    numbers = Batch(made).stages.number + 1
    made.contexts.span_id[:] = [-0x9E3779B97F4A7C15 * n % 2**64 for n in numbers.tolist()]
    assert Batch(made).stage_span_ids().tolist() == [1] * len(made)


NAMING = (
    (b"GET /items/7 HTTP/1.1", False),
    (b"GET // HTTP/1.1", False),
    (b"GET /http://a/ HTTP/1.1", False),
    (b"GET http://shop/ HTTP/1.1", True),
    (b"GET * HTTP/1.1", True),
    (b"CONNECT shop:443 HTTP/1.1", True),
    (b"CONNECT /shop HTTP/1.1", True),
)


def test_a_line_that_names_a_server_is_kept_and_no_other() -> None:
    batch = joined(*(requests(request_line=line) for line, _ in NAMING))
    assert batch.values("naming_line") == [line if names else b"" for line, names in NAMING]
    assert batch.values("naming_line_length") == [
        len(line) if names else 0 for line, names in NAMING
    ]


def test_no_line_that_names_a_server() -> None:
    batch = joined(requests(), requests())
    assert batch.values("naming_line") == [b"", b""]
    assert batch.values("naming_line_length") == [0, 0]


def test_whatever_a_line_says_of_its_server_is_kept() -> None:
    """What is left out would have said nothing."""
    for batch in batches_of(of(varied(3_000, 5))):
        columns = map(batch.values, ("request_line", "request_line_length", "naming_line"))
        for line, length, naming in zip(*columns, strict=True):
            if naming:
                assert naming == line
                continue
            said = split_request_line(text_of(line, length), is_cut=length > len(line))
            assert (said.scheme, said.authority) == ("http", "")


def test_stamps_and_flags_in_bits() -> None:
    cut = RequestFlag.REQUEST_RECEIVED | RequestFlag.PEER_RESET | RequestFlag.IDLE_TIMEOUT
    kept = RequestFlag.KEPT | RequestFlag.REQUEST_CHUNKED
    batch = joined(
        requests({Stamp.NIC: 0, Stamp.ACKED: 9}, flags=WHOLE | kept),
        requests({Stamp.TC: 1}, flags=cut),
    )
    assert batch.present.tolist() == [1 << Stamp.NIC | 1 << Stamp.ACKED, 1 << Stamp.TC]
    assert batch.ending.tolist() == [
        RequestFlag.REQUEST_ANSWERED, RequestFlag.PEER_RESET | RequestFlag.IDLE_TIMEOUT
    ]  # fmt: skip


def test_retransmits_of_both_ways() -> None:
    most = 2**32 - 1
    batch = joined(
        requests(request_retransmits=2, response_retransmits=3),
        requests(request_retransmits=most, response_retransmits=most),
    )
    assert batch.retransmits.tolist() == [5, 2 * most]


def test_the_application_s_own_spans() -> None:
    trace_ids = [bytes([number]) * 16 for number in (1, 2, 3)]
    made = Requests.joined([requests(trace_id=each, trace_flags=3) for each in trace_ids])
    made.contexts.elsewhere[:] = [False, True, False]
    made.contexts.linked_span_id[:] = [7, 0, 0]
    batch = Batch(made)
    assert batch.values("elsewhere_trace_id") == [bytes(16), trace_ids[1], bytes(16)]
    assert batch.linked_flags.tolist() == [3, 0, 0]


def test_a_column_is_found_by_its_name() -> None:
    made = of(varied(50, 1))
    batch = Batch(made)
    for section, dtype in ((None, REQUEST_RECORD), ("http1", HTTP1), ("join", JOIN)):
        for name in dtype.names or ():
            records = made.records if section is None else made.records[section]
            assert batch.column(name).tobytes() == records[name].tobytes()
    assert batch.column("acked_ns") is batch.acked_ns
    assert batch.values("status") == made.records["status"].tolist()
    assert batch.values("status") is batch.values("status")
    with pytest.raises(AttributeError):
        batch.column("no such thing")


def test_stamps_in_the_order_of_time() -> None:
    (stamps,) = sorted_stamps(requests({Stamp.READ: 3, Stamp.NIC: 9, Stamp.TC: 3}).records)
    present = stamps[stamps != 0]
    assert numbers_of(present).tolist() == [Stamp.TC, Stamp.READ, Stamp.NIC]
    assert (times_of(present) - BEGIN_KTIME_NS).tolist() == [3, 3, 9]
    assert not stamps[: -len(present)].any()


# ---- joined, and cut ----


def assert_same(one: Requests, other: Requests) -> None:
    assert one.records.tobytes() == other.records.tobytes()
    for field in dataclasses.fields(Contexts):
        mine, others = (getattr(each.contexts, field.name) for each in (one, other))
        assert mine.dtype == others.dtype
        assert mine.tolist() == others.tolist()
    assert list(map(id, one.resources)) == list(map(id, other.resources))


@pytest.mark.parametrize("cuts", [(), (0,), (1,), (50, 50), (1, 2, 99), (100,)])
def test_parts_that_are_joined_again_are_the_whole(cuts: tuple[int, ...]) -> None:
    whole = of(varied(100, 2), (RESOURCE, OTHER))
    parts = [whole[begin:end] for begin, end in zip((0, *cuts), (*cuts, 100), strict=True)]
    assert [len(part) for part in parts] == [
        end - begin for begin, end in zip((0, *cuts), (*cuts, 100), strict=True)
    ]
    again = Requests.joined(parts)
    assert len(again) == 100
    assert_same(again, whole)
    assert again.clock == CLOCK


def test_any_rows_of_them() -> None:
    whole = of(varied(20, 2), (RESOURCE, OTHER))
    rows = np.array([7, 3, 3, 19])
    assert_same(whole[rows], Requests.joined([whole[row : row + 1] for row in rows.tolist()]))
    assert whole[rows].clock is whole.clock


def test_joined_ones_go_by_the_last_clock() -> None:
    later = ClockReading(CLOCK.offset_ns + 5, 60)
    assert Requests.joined([requests(), requests(clock=later)]).clock is later


# ---- in batches ----


def of_kinds(kinds: str, resources: Sequence[Resource]) -> Requests:
    """A request for each letter, `s` or `c`, numbered by its span id from 1 on."""
    made = Requests.joined(
        [requests(flags=CLIENT if kind == "c" else WHOLE, resource=resource)
         for kind, resource in zip(kinds, resources, strict=True)]
    )  # fmt: skip
    made.contexts.span_id[:] = np.arange(1, len(kinds) + 1)
    return made


def test_kinds_are_apart_and_keep_their_order() -> None:
    servers, clients = batches_of(of_kinds("scsccs", [RESOURCE] * 6))
    assert (servers.kind, clients.kind) == (Kind.SERVER, Kind.CLIENT)
    assert servers.contexts.span_id.tolist() == [1, 3, 6]
    assert clients.contexts.span_id.tolist() == [2, 4, 5]
    assert servers.runs() == [(RESOURCE, 0, 3)]


@pytest.mark.parametrize(("kinds", "kind"), [("sss", Kind.SERVER), ("ccc", Kind.CLIENT)])
def test_there_is_no_empty_batch(kinds: str, kind: Kind) -> None:
    (batch,) = batches_of(of_kinds(kinds, [RESOURCE] * 3))
    assert (batch.kind, len(batch)) == (kind, 3)
    assert batch.contexts.span_id.tolist() == [1, 2, 3]


def test_no_requests_are_no_batches() -> None:
    assert batches_of(numbered(1)[:0]) == []


def test_those_of_a_resource_are_together_and_keep_their_order() -> None:
    # The same words do not make the same resource.
    same = Resource(dict(RESOURCE.attributes))
    turns = [RESOURCE, OTHER, same] * 4
    batches = batches_of(of_kinds("sc" * 6, turns))
    assert [len(batch) for batch in batches] == [6, 6]
    for batch, numbers in zip(batches, (range(1, 13, 2), range(2, 13, 2)), strict=True):
        runs = batch.runs()
        assert [begin for _, begin, _ in runs[1:]] == [end for _, _, end in runs[:-1]]
        assert (runs[0][1], runs[-1][2]) == (0, 6)
        # In the order in which they come first, of whichever kind.
        assert [id(resource) for resource, _, _ in runs] == list(map(id, turns[:3]))
        found = {}
        for resource, begin, end in runs:
            assert all(each is resource for each in batch.resources[begin:end])
            found[id(resource)] = batch.contexts.span_id[begin:end].tolist()
        assert found == {
            id(each): [n for n in numbers if turns[n - 1] is each]
            for each in (RESOURCE, OTHER, same)
        }


def test_nothing_is_mixed_up_in_batches() -> None:
    """Each record keeps its context and its resource."""
    made = of(varied(2_000, 4), (RESOURCE, OTHER))
    by_id = {
        span_id: (record.tobytes(), id(resource), trace)
        for span_id, record, resource, trace in zip(
            made.contexts.span_id.tolist(), made.records, made.resources,
            made.contexts.trace_id_low.tolist(), strict=True,
        )
    }  # fmt: skip
    found = {}
    for batch in batches_of(made):
        is_client = batch.records["flags"] & RequestFlag.CLIENT != 0
        assert (is_client == (batch.kind is Kind.CLIENT)).all()
        for i, span_id in enumerate(batch.contexts.span_id.tolist()):
            found[span_id] = (
                batch.records[i].tobytes(), id(batch.resources[i]),
                int(batch.contexts.trace_id_low[i]),
            )  # fmt: skip
    assert found == by_id
    assert sum(map(len, batches_of(made))) == len(made)

# SPDX-License-Identifier: Apache-2.0
"""decode(), and RingReader on maps laid out as the programs write them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from kernel_maps import KernelMaps
from samples import record

from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import EXCHANGE, REQUEST_RECORD, RING_ENDS, ExchangeState
from otelbpf.ledger.reader import RecordError, RingReader, decode

LIMITS = Limits(connections=12, ring=5)
SLOTS = 11
PLACES = 16


class Kernel(KernelMaps):
    """The maps, and the programs' side of them (bpf/ledger/submission.h, hand_over())."""

    limits = LIMITS

    def __init__(self) -> None:
        super().__init__()
        self.exchanges = self.add("exchanges", EXCHANGE, SLOTS)
        self.ring = self.add("ring", np.uint64, PLACES)
        self.ends = self.add("ring_ends", RING_ENDS, 1)
        self.exchanges["slot"] = np.arange(SLOTS)

    def begin_at(self, number: int) -> None:
        self.ends["submitted"] = self.ends["read"] = number

    def free_slots(self) -> list[int]:
        return np.flatnonzero(self.exchanges["state"] == ExchangeState.FREE).tolist()

    def fits(self) -> bool:
        return bool(self.ends["submitted"][0] - self.ends["read"][0] < LIMITS.ring)

    def finish(self, ordinal: int, *, told: bool = True, slot: int | None = None) -> int:
        """Hands over a request; gives its place in the ring."""
        assert self.fits(), "the programs would count it as lost"
        slot = self.free_slots()[0] if slot is None else slot
        self.exchanges["state"][slot] = ExchangeState.FINISHING
        self.exchanges["record"][slot] = record(ordinal=ordinal)[0]
        place = int(self.ends["submitted"][0]) % PLACES
        assert self.ring[place] == 0, "a place of the ring was not given back"
        self.ends["submitted"] += 1
        if told:
            self.tell(place, slot)
        return place

    def tell(self, place: int, slot: int) -> None:
        self.ring[place] = slot + 1

    def close(self) -> None:
        del self.exchanges, self.ring, self.ends
        super().close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


@pytest.fixture
def reader(kernel: Kernel) -> Iterator[RingReader]:
    made = RingReader(kernel)  # type: ignore[arg-type]
    yield made
    made.close()


def ordinals(records: np.ndarray) -> list[int]:
    assert records.dtype == REQUEST_RECORD
    return records["ordinal"].tolist()


def test_decode_views_whole_records() -> None:
    made = np.concatenate([record(ordinal=i, host=b"h%d" % i) for i in range(23)])
    decoded = decode(made.tobytes())
    assert decoded.shape == (23,)
    assert (decoded == made).all()
    assert decode(b"").shape == (0,)


@pytest.mark.parametrize("extra", [1, 8, REQUEST_RECORD.itemsize - 1])
def test_decode_refuses_a_part_of_a_record(extra: int) -> None:
    size = REQUEST_RECORD.itemsize + extra
    with pytest.raises(RecordError, match=rf"^{size} bytes .* {REQUEST_RECORD.itemsize} bytes$"):
        decode(bytes(size))


def test_the_ring_has_a_place_for_each_slot() -> None:
    assert (LIMITS.exchanges, LIMITS.ring_slots) == (SLOTS, PLACES)
    assert Limits(connections=32, ring=16).ring_slots == 32
    assert Limits(connections=34, ring=16).ring_slots == 64


def test_an_empty_ring_gives_none(kernel: Kernel, reader: RingReader) -> None:
    assert ordinals(reader.read()) == []
    assert reader.pending == 0
    assert kernel.ends["read"][0] == 0


def test_requests_come_once_and_in_order(kernel: Kernel, reader: RingReader) -> None:
    for ordinal, slot in enumerate((7, 2, 10, 0)):
        kernel.finish(ordinal, slot=slot)
    assert reader.pending == 4
    records = reader.read()
    assert ordinals(records) == [0, 1, 2, 3]
    assert (records == np.concatenate([record(ordinal=i) for i in range(4)])).all()
    assert reader.pending == 0
    assert ordinals(reader.read()) == []


def test_slots_and_places_are_given_back(kernel: Kernel, reader: RingReader) -> None:
    kernel.exchanges["state"][4] = ExchangeState.IN_FLIGHT + 0xC0FFEE
    for ordinal, slot in enumerate((3, 9)):
        kernel.finish(ordinal, slot=slot)
    assert kernel.free_slots() == [0, 1, 2, 5, 6, 7, 8, 10]
    reader.read()
    assert kernel.free_slots() == [0, 1, 2, 3, 5, 6, 7, 8, 9, 10]
    assert not kernel.ring.any()


def test_what_was_read_is_a_copy(kernel: Kernel, reader: RingReader) -> None:
    kernel.finish(1, slot=0)
    records = reader.read()
    kernel.finish(2, slot=0)
    assert ordinals(records) == [1]
    assert (records == record(ordinal=1)).all()


@pytest.mark.parametrize(
    ("section", "name", "room"),
    [
        ("http1", "request_line", 192),
        ("http1", "host", 64),
        ("http1", "user_agent", 96),
        ("join", "traceparent", 56),
    ],
)
def test_texts_end_where_their_lengths_say(
    kernel: Kernel, reader: RingReader, section: str, name: str, room: int
) -> None:
    """What an earlier request left in the slot is not this one's."""
    for slot, length in enumerate((0, 1, room - 1, room, room + 1)):
        kernel.finish(slot, slot=slot)
        found = kernel.exchanges["record"][section][slot : slot + 1]
        found[name] = b"x" * room
        found[f"{name}_length"] = length
    records = reader.read()
    assert [len(text) for text in records[section][name]] == [0, 1, room - 1, room, room]
    assert (records["ordinal"] == range(5)).all()


# 16 places and batches of 5: every position comes up, also such that lie across the end.
@pytest.mark.parametrize("begin", [0, 7, (1 << 32) - 8, (1 << 62) + 640])
def test_round_and_round(kernel: Kernel, reader: RingReader, begin: int) -> None:
    kernel.begin_at(begin)
    finished = read = 0
    for _ in range(40):
        while kernel.fits():
            kernel.finish(finished)
            finished += 1
        got = ordinals(reader.read())
        assert got == list(range(read, finished))
        read = finished
        assert int(kernel.ends["read"][0]) == begin + read
    assert read == 40 * LIMITS.ring


def test_no_more_than_the_limit(kernel: Kernel, reader: RingReader) -> None:
    for i in range(5):
        kernel.finish(i)
    assert ordinals(reader.read(limit=2)) == [0, 1]
    assert reader.pending == 3
    assert ordinals(reader.read(limit=2)) == [2, 3]
    assert ordinals(reader.read(limit=2)) == [4]
    assert ordinals(reader.read(limit=0)) == []


def test_one_that_is_not_told_yet_holds_up_those_behind_it(
    kernel: Kernel, reader: RingReader
) -> None:
    kernel.finish(0, slot=0)
    kernel.finish(1, slot=1)
    place = kernel.finish(2, slot=2, told=False)
    kernel.finish(3, slot=3)
    assert ordinals(reader.read()) == [0, 1]
    assert reader.pending == 2
    assert ordinals(reader.read()) == []
    assert reader.pending == 2
    kernel.tell(place, 2)
    assert ordinals(reader.read()) == [2, 3]
    assert reader.pending == 0


def test_each_is_peeked_at_once_and_stays(kernel: Kernel, reader: RingReader) -> None:
    for i in range(3):
        kernel.finish(i)
    assert ordinals(reader.peek()) == [0, 1, 2]
    assert ordinals(reader.peek()) == []
    place = kernel.finish(3, slot=3, told=False)
    kernel.finish(4)
    assert ordinals(reader.peek()) == []
    kernel.tell(place, 3)
    assert ordinals(reader.peek()) == [3, 4]
    assert reader.pending == 5
    assert ordinals(reader.read()) == [0, 1, 2, 3, 4]
    kernel.finish(5)
    assert ordinals(reader.read()) == [5]
    kernel.finish(6)
    assert ordinals(reader.peek()) == [6]


def test_a_process_that_is_not_known_is_none(kernel: Kernel, reader: RingReader) -> None:
    """In its place is what the request before it had."""
    for slot, pid in enumerate((0, 42)):
        kernel.finish(slot, slot=slot)
        kernel.exchanges["record"]["pid"][slot] = pid
        kernel.exchanges["record"]["process"]["comm"][slot] = b"another"
    assert reader.read()["process"]["comm"].tolist() == [b"", b"another"]

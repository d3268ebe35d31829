# SPDX-License-Identifier: Apache-2.0
"""decode(), and RingReader on a ring laid out as the kernel does it."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from samples import record

from otelbpf.reader import RecordError, RingReader, decode
from otelbpf.records import REQUEST_RECORD

PAGE = mmap.PAGESIZE
HEADER = 8
STRIDE = HEADER + REQUEST_RECORD.itemsize
BUSY = 1 << 31
DISCARD = 1 << 30


class FakeRing:
    """The memory of a BPF ring buffer and the kernel's side of it.

    Consumer page, producer page, and the data twice in a row (kernel/bpf/ringbuf.c).

    Args:
        begin: the position of both sides at first; a multiple of 8.
    """

    def __init__(self, data_bytes: int, begin: int = 0) -> None:
        self.data_bytes = data_bytes
        size = 2 * PAGE + 2 * data_bytes
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, size)
        self._map = mmap.mmap(self.fd, size)
        self._made = 0
        self._put_position(0, begin)
        self._put_position(PAGE, begin)

    def _put_position(self, at: int, position: int) -> None:
        self._map[at : at + 8] = position.to_bytes(8, "little")

    def _position(self, at: int) -> int:
        return int.from_bytes(self._map[at : at + 8], "little")

    @property
    def consumed(self) -> int:
        return self._position(0)

    @property
    def produced(self) -> int:
        return self._position(PAGE)

    def fits(self) -> bool:
        return self.produced + STRIDE - self.consumed <= self.data_bytes

    def _write(self, position: int, data: bytes) -> None:
        for i, byte in enumerate(data):
            at = 2 * PAGE + (position + i) % self.data_bytes
            self._map[at] = self._map[at + self.data_bytes] = byte

    def write_header(self, position: int, bits: int = 0) -> None:
        length = REQUEST_RECORD.itemsize | bits
        self._write(position, length.to_bytes(4, "little") + b"\xaa\xbb\xcc\xdd")

    def produce(self, ordinal: int, bits: int = 0) -> int:
        """Adds a record; gives its position."""
        assert self.fits(), "the kernel would refuse to reserve"
        position = self.produced
        self.write_header(position, bits)
        self._write(position + HEADER, record(ordinal=ordinal).tobytes())
        self._put_position(PAGE, position + STRIDE)
        return position

    def close(self) -> None:
        self._map.close()
        os.close(self.fd)


Make = Callable[..., tuple[FakeRing, RingReader]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[tuple[FakeRing, RingReader]] = []

    def make_one(data_bytes: int = 4 * PAGE, begin: int = 0) -> tuple[FakeRing, RingReader]:
        ring = FakeRing(data_bytes, begin)
        made.append((ring, RingReader(ring.fd, data_bytes)))
        return made[-1]

    yield make_one
    for ring, reader in made:
        reader.close()
        ring.close()


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


def test_an_empty_ring_gives_none(make: Make) -> None:
    ring, reader = make()
    assert ordinals(reader.read()) == []
    assert ring.consumed == 0


def test_records_come_once_and_in_order(make: Make) -> None:
    ring, reader = make()
    for i in range(22):
        ring.produce(i)
    records = reader.read()
    assert ordinals(records) == list(range(22))
    assert (records == np.concatenate([record(ordinal=i) for i in range(22)])).all()
    assert ring.consumed == ring.produced == 22 * STRIDE
    assert ordinals(reader.read()) == []


def test_what_was_read_is_a_copy(make: Make) -> None:
    ring, reader = make(PAGE)
    ring.produce(1)
    records = reader.read()
    for i in range(2, 8):  # the sixth begins to overwrite the first
        ring.produce(i)
        reader.read()
    assert ordinals(records) == [1]
    assert (records == record(ordinal=1)).all()


# A ring of one page holds 5.7 records: every position comes up, also such that lie across the end.
@pytest.mark.parametrize("begin", [0, 8, 7 * STRIDE, (1 << 32) - 8 * STRIDE, (1 << 63) + 640])
def test_records_across_the_end(make: Make, begin: int) -> None:
    ring, reader = make(PAGE, begin)
    produced = consumed = 0
    for _ in range(40):
        while ring.fits():
            ring.produce(produced)
            produced += 1
        got = ordinals(reader.read())
        assert got == list(range(consumed, produced))
        consumed = produced
        assert ring.consumed == begin + consumed * STRIDE
    assert consumed == 40 * (PAGE // STRIDE)


def test_no_more_than_the_limit(make: Make) -> None:
    ring, reader = make()
    for i in range(7):
        ring.produce(i)
    assert ordinals(reader.read(limit=3)) == [0, 1, 2]
    assert ring.consumed == 3 * STRIDE
    assert ordinals(reader.read(limit=3)) == [3, 4, 5]
    assert ordinals(reader.read(limit=3)) == [6]
    assert ordinals(reader.read(limit=0)) == []


def test_a_busy_record_holds_up_those_behind_it(make: Make) -> None:
    ring, reader = make()
    ring.produce(0)
    ring.produce(1)
    busy = ring.produce(2, BUSY)
    ring.produce(3)
    assert ordinals(reader.read()) == [0, 1]
    assert ring.consumed == busy
    assert ordinals(reader.read()) == []
    assert ring.consumed == busy
    ring.write_header(busy)  # submitted
    assert ordinals(reader.read()) == [2, 3]


def test_discarded_records_are_stepped_over(make: Make) -> None:
    ring, reader = make()
    for i in range(6):
        ring.produce(i, DISCARD if i in (0, 3, 5) else 0)
    assert ordinals(reader.read()) == [1, 2, 4]
    assert ring.consumed == ring.produced


def test_a_busy_record_that_is_discarded_in_the_end(make: Make) -> None:
    ring, reader = make()
    busy = ring.produce(0, BUSY)
    ring.produce(1)
    assert ordinals(reader.read()) == []
    ring.write_header(busy, DISCARD)
    assert ordinals(reader.read()) == [1]
    assert ring.consumed == ring.produced


def test_a_reader_takes_up_where_the_last_one_stopped(make: Make) -> None:
    ring, reader = make()
    for i in range(3):
        ring.produce(i)
    reader.read(limit=2)
    again = RingReader(ring.fd, ring.data_bytes)
    assert ordinals(again.read()) == [2]
    again.close()

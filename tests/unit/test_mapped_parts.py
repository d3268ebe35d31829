# SPDX-License-Identifier: Apache-2.0
"""PartlyMappedArray, on a file in memory in the place of the kernel's array."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from kernel_maps import KernelMaps

from otelbpf.kernel.mapped_parts import PART_BYTES, PartlyMappedArray

#: No part begins or ends with a row.
ROW = np.dtype([("number", np.uint64), ("rest", "V856")])
COUNT = 8_000
ROWS_OF_A_PART = PART_BYTES // ROW.itemsize
PARTS = -(-COUNT * ROW.itemsize // PART_BYTES)


class Kernel(KernelMaps):
    def __init__(self) -> None:
        super().__init__()
        self.rows = self.add("rows", ROW, COUNT)
        self.rows["number"] = np.arange(COUNT)

    def array(self, most: int | None = None, *, writable: bool = False) -> PartlyMappedArray:
        return PartlyMappedArray(self.map_fd("rows"), ROW, COUNT, most=most, writable=writable)

    def close(self) -> None:
        del self.rows
        super().close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made_up = Kernel()
    yield made_up
    made_up.close()


def parts_mapped(array: PartlyMappedArray) -> list[int]:
    """Which ones are, as the kernel says."""
    base = array.values.__array_interface__["data"][0]
    found = re.findall(
        r"^(\w+)-(\w+) r\S+ .*/memfd:rows", Path("/proc/self/maps").read_text(), re.MULTILINE
    )
    return [
        part
        for begin, end in ((int(begin, 16), int(end, 16)) for begin, end in found)
        for part in range((begin - base) // PART_BYTES, -(-(end - base) // PART_BYTES))
        if base <= begin < base + COUNT * ROW.itemsize
    ]


def test_nothing_is_mapped_that_nobody_asked_for(kernel: Kernel) -> None:
    array = kernel.array()
    assert parts_mapped(array) == []
    array.reach(np.array([0, COUNT - 1], np.uint64))
    assert parts_mapped(array) == [0, PARTS - 1]
    assert array.values["number"][[0, COUNT - 1]].tolist() == [0, COUNT - 1]
    array.close()


def test_a_row_that_lies_in_two_parts(kernel: Kernel) -> None:
    array = kernel.array(most=2)
    for part in range(PARTS - 1):
        row = np.array([(part + 1) * PART_BYTES // ROW.itemsize])
        array.reach(row)
        assert parts_mapped(array) == [part, part + 1]
        assert bytes(array.values[row].tobytes()) == kernel.rows[row].tobytes()
    array.close()


def test_what_was_not_asked_for_for_longest_goes(kernel: Kernel) -> None:
    array = kernel.array(most=3)
    firsts = np.arange(PARTS) * PART_BYTES // ROW.itemsize + 1
    for part in (0, 1, 2, 0, 3):
        array.reach(firsts[[part]])
    assert parts_mapped(array) == [0, 2, 3]
    # What is asked for at once is there at once, and no longer.
    array.reach(firsts)
    assert parts_mapped(array) == [*range(PARTS)]
    assert array.values["number"][firsts].tolist() == firsts.tolist()
    array.reach(firsts[[4]])
    assert len(parts_mapped(array)) == 3
    array.close()


def test_a_range(kernel: Kernel) -> None:
    array = kernel.array(most=0)
    for begin in range(0, COUNT, 2_600):
        array.reach_range(begin, begin + 2_600)
        numbers = array.values["number"][begin : begin + 2_600]
        assert numbers.tolist() == [*range(begin, min(begin + 2_600, COUNT))]
        del numbers
        assert len(parts_mapped(array)) <= 2_600 // ROWS_OF_A_PART + 2
    array.close()


def test_both_see_what_is_written(kernel: Kernel) -> None:
    array = kernel.array(most=1, writable=True)
    array.reach(np.array([7]))
    array.values["number"][7] = 1_000_007
    kernel.rows["number"][8] = 1_000_008
    array.reach(np.array([COUNT - 1]))
    assert kernel.rows["number"][7] == 1_000_007
    array.reach(np.array([8]))
    assert array.values["number"][7:9].tolist() == [1_000_007, 1_000_008]
    array.close()


@pytest.mark.parametrize("asked", [[], [5, COUNT - 1]])
def test_nobody_reads_something_else(kernel: Kernel, asked: list[int]) -> None:
    """Of a row that was not asked for, or not lately, nothing is there to be taken for it."""
    array = kernel.array(most=1)
    for row in asked:
        array.reach(np.array([row]))
    child = os.fork()
    if not child:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        array.values["number"][5].item()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGSEGV
    array.close()


def test_an_array_that_is_no_array() -> None:
    reader, writer = os.pipe()
    array = PartlyMappedArray(reader, ROW, COUNT)
    with pytest.raises(OSError, match="No such device"):
        array.reach(np.array([0]))
    array.close()
    os.close(reader)
    os.close(writer)

# SPDX-License-Identifier: Apache-2.0
"""How much stack the programs of uprobes have.

They may be preempted by one another. From Linux 6.13 on a program with 64 bytes of stack or more
has one for each processor, which whoever preempts it there would write over: that can bring a
kernel down.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from elftools.elf.elffile import ELFFile

from otelbpf.kernel.objects import object_path
from otelbpf.userspace.uprobes import PROGRAMS

#: BPF_PRIV_STACK_MIN_SIZE of the kernel's kernel/bpf/verifier.c, less what it may round up.
MOST = 48
FRAME = 10
CLASS, MODE = 0x07, 0xE0
LDX, ST, STX = 0x01, 0x02, 0x03
MOVE_REGISTER, ADD_NUMBER, CALL, LOAD_ADDRESS = 0xBF, 0x07, 0x85, 0x18
PSEUDO_CALL, PSEUDO_FUNCTION = 1, 4
Instruction = tuple[int, int, int, int, int]


def instructions(program: str) -> Iterator[Instruction]:
    """Of a program: operation, destination, source, offset, number."""
    with object_path().open("rb") as file:
        elf = ELFFile(file)
        (symbol,) = elf.get_section_by_name(".symtab").get_symbol_by_name(program)
        code = elf.get_section(symbol["st_shndx"]).data()
    start = symbol["st_value"]
    for each in struct.iter_unpack("<BBhi", code[start : start + symbol["st_size"]]):
        operation, registers, offset, number = each
        yield operation, registers & 15, registers >> 4, offset, number


def stack_of(program: str) -> int:
    """The bytes of it that a program reaches."""
    deepest, derived = 0, None
    for operation, to, source, offset, number in instructions(program):
        kind = operation & CLASS
        assert (operation, source) != (CALL, PSEUDO_CALL), "a function has a stack of its own"
        assert (operation, source) != (LOAD_ADDRESS, PSEUDO_FUNCTION), "so has a step of a loop"
        if derived is not None:
            assert (operation, to) == (ADD_NUMBER, derived), "an address that is not understood"
            deepest, derived = min(deepest, number), None
        elif operation == MOVE_REGISTER and source == FRAME:
            derived = to
        elif (kind == LDX and source == FRAME) or (kind in (ST, STX) and to == FRAME):
            deepest = min(deepest, offset)
    return -deepest


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_of_a_uprobe_has_a_stack_of_its_own(program: str) -> None:
    assert stack_of(program) <= MOST


def test_stacks_are_seen() -> None:
    assert stack_of("probed_go_start") > 0
    assert stack_of("traced_reset") >= 40  # a connection's key

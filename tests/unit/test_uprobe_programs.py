# SPDX-License-Identifier: Apache-2.0
"""What programs of uprobes have for themselves: no memory of a processor's, and little stack.

They may be preempted by one another, so what a processor has is not one program's. From Linux 6.13
on that holds for the stack of a program with 64 bytes of it or more, too: whoever preempts it there
would write over it, and that can bring a kernel down.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile

from otelbpf.kernel.objects import object_path
from otelbpf.kernel.records import MAPS
from otelbpf.userspace.uprobes import PROGRAMS

#: BPF_PRIV_STACK_MIN_SIZE of the kernel's kernel/bpf/verifier.c, less what it may round up.
MOST = 48
FRAME = 10
CLASS, MODE = 0x07, 0xE0
LDX, ST, STX = 0x01, 0x02, 0x03
MOVE_REGISTER, ADD_NUMBER, CALL, LOAD_ADDRESS = 0xBF, 0x07, 0x85, 0x18
PSEUDO_CALL, PSEUDO_FUNCTION = 1, 4
PROCESSOR_NUMBER = 8  # BPF_FUNC_get_smp_processor_id
#: Each processor's own memory: its array, and such maps of the kernel's (enum bpf_map_type).
SCRATCHES = "scratches"
PER_PROCESSOR = (5, 6, 10, 21)
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


def reached_by(program: str) -> set[str]:
    """The arrays and maps that a program has the addresses of."""
    with object_path().open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".symtab")
        (symbol,) = symbols.get_symbol_by_name(program)
        section = elf.get_section(symbol["st_shndx"])
        reached = set()
        for each in elf.get_section_by_name(f".rel{section.name}").iter_relocations():
            if 0 <= each["r_offset"] - symbol["st_value"] < symbol["st_size"]:
                named = symbols.get_symbol(each["r_info_sym"])
                reached.add(elf.get_section(named["st_shndx"]).name.removeprefix(".bss."))
                reached.add(named.name)
        return reached


def asks_for_its_processor(program: str) -> bool:
    return any(
        (operation, source, number) == (CALL, 0, PROCESSOR_NUMBER)
        for operation, _, source, _, number in instructions(program)
    )


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_of_a_uprobe_works_in_memory_of_its_processor(program: str) -> None:
    reached = reached_by(program)
    assert SCRATCHES not in reached
    assert not asks_for_its_processor(program)
    assert [name for name in reached & MAPS.keys() if MAPS[name].type in PER_PROCESSOR] == []


def test_memory_of_a_processor_is_seen() -> None:
    assert {SCRATCHES, "connections"} <= reached_by("traced_queued")
    assert asks_for_its_processor("traced_queued")
    assert "python_sites" in reached_by("probed_python_start")


def test_these_are_all_programs_of_uprobes() -> None:
    sources = (Path(__file__).parents[2] / "bpf/hooks").glob("*.c")
    probes = {
        source.name: re.findall(r'PROGRAM\("kprobe"\) int (\w+)', source.read_text())
        for source in sources
    }
    # Those of the kernel's own functions cannot be preempted by one another.
    assert {name for name, found in probes.items() if found} == {"handler.c", "socket.c"}
    assert sorted(probes["handler.c"]) == sorted(PROGRAMS)


@pytest.mark.parametrize("program", PROGRAMS)
def test_no_program_of_a_uprobe_has_a_stack_of_its_own(program: str) -> None:
    assert stack_of(program) <= MOST


def test_stacks_are_seen() -> None:
    assert stack_of("probed_go_start") > 0
    assert stack_of("traced_reset") >= 40  # a connection's key

# SPDX-License-Identifier: Apache-2.0
"""Where functions end, as objdump sees it. Needs gcc, binutils and Go."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from binaries import Instruction, compile_c, compile_go, disassemble

from otelbpf.userspace.code import Code
from otelbpf.userspace.disassembly import UnclearCodeError, ends_of, start_of, start_of_go
from otelbpf.userspace.elf import Elf

pytestmark = pytest.mark.impure

GO = {
    "main.go": """
package main

import "os"

type shop struct {
	sold [200]int
}

//go:noinline
func (s *shop) handle(n int) int {
	if n < 0 {
		return -1
	}
	switch n {
	case 0: return s.price(4)
	case 1: return s.price(9) + 1
	case 2: return s.price(7) + 2
	case 3: return s.price(5) + 3
	case 4: return s.price(3) + 4
	case 5: return s.price(8) + 5
	case 6: return s.price(6) + 6
	case 7: return s.price(2) + 7
	case 8: return s.price(1) + 8
	}
	return s.sold[n]
}

//go:noinline
func (s *shop) price(n int) int {
	copied := s.sold
	copied[n&7]++
	return sum(&copied)
}

//go:noinline
func sum(sold *[200]int) (all int) {
	for _, each := range sold {
		all += each
	}
	return
}

//go:noinline
func large(n int) int {
	var frame [3000]int
	frame[n]++
	s := shop{}
	return frame[n/2] + s.handle(n)
}

//go:noinline
func forever(wait chan int) {
	for {
		<-wait
	}
}

func jump(n int) int

func main() {
	s := shop{}
	go forever(nil)
	os.Exit(s.handle(len(os.Args)) + large(len(os.Args)) + jump(1))
}
""",
    "jump_amd64.s": """
TEXT ·jump(SB), 4, $0-16
	CMPQ n+0(FP), $0
	JNE  more
	MOVQ $1, ret+8(FP)
	RET
more:
	JMP  ·other(SB)

TEXT ·other(SB), 4, $0-16
	MOVQ $2, ret+8(FP)
	RET
""",
}


@pytest.fixture(scope="module")
def go_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_go(tmp_path_factory.mktemp("go"), GO)


def code_of(path: Path, function: str) -> Code:
    with Elf(path) as elf:
        (symbol,) = elf.symbols(function)
        return elf.code_of(symbol)


def returns(instructions: list[Instruction]) -> tuple[int, ...]:
    return tuple(each.address for each in instructions if each.returns)


@pytest.mark.parametrize(
    ("function", "at_least"),
    [
        ("main.(*shop).handle", 3),
        ("main.(*shop).price", 1),
        ("main.sum", 1),
        ("main.large", 1),
        ("main.forever", 0),
    ],
)
def test_ends_of_go_are_its_returns(go_program: Path, function: str, at_least: int) -> None:
    expected = returns(disassemble(go_program, function))
    assert ends_of(code_of(go_program, function), is_go=True) == expected
    assert len(expected) >= at_least


def test_a_switch_in_go_is_no_end(go_program: Path) -> None:
    texts = [each.text for each in disassemble(go_program, "main.(*shop).handle")]
    assert any(re.match(r"jmp +\*\(", text) for text in texts)


def test_a_jump_to_another_go_function_is_an_end(go_program: Path) -> None:
    instructions = disassemble(go_program, "main.jump.abi0")
    (jump,) = [each.address for each in instructions if each.text.endswith("<main.other>")]
    expected = (*returns(instructions), jump)
    assert len(expected) == 2
    assert ends_of(code_of(go_program, "main.jump.abi0"), is_go=True) == expected


@pytest.mark.parametrize("function", ["main.(*shop).handle", "main.(*shop).price", "main.large"])
def test_go_starts_after_its_stack_is_large_enough(go_program: Path, function: str) -> None:
    instructions = disassemble(go_program, function)
    entry = instructions[0].address
    start = start_of_go(code_of(go_program, function))
    index = [each.address for each in instructions].index(start)
    # The frame is made next; before it, only registers were compared with the stack's limit.
    assert re.match(r"push +%rbp|sub +\$0x\w+,%rsp", instructions[index].text)
    check = [each.text for each in instructions[:index]]
    assert re.match(r"jbe? ", check[-1])
    assert not any(re.match(r"push|call|ret|(?!cmp).*,%rsp$", text) for text in check)
    again = [each for each in instructions if each.text.startswith(f"jmp    {entry:x} ")]
    assert len(again) == 1 and start > entry


def test_a_large_go_frame_has_two_checks(go_program: Path) -> None:
    instructions = disassemble(go_program, "main.large")
    start = start_of_go(code_of(go_program, "main.large"))
    jumps = [each for each in instructions if each.address < start and each.text.startswith("jb")]
    assert len(jumps) == 2


def test_a_go_function_without_a_check_starts_at_its_first_instruction(go_program: Path) -> None:
    code = code_of(go_program, "main.sum")
    assert start_of_go(code) == code.address


def test_every_go_function_of_a_program(go_program: Path) -> None:
    with Elf(go_program) as elf:
        symbols = [each for each in elf.symbols("runtime.*") if each.is_function and each.size]
        wanted = returns(disassemble(go_program))
        unclear = []
        for symbol in symbols:
            code = elf.code_of(symbol)
            try:
                ends = ends_of(code, is_go=True)
            except UnclearCodeError:
                unclear.append(symbol.name)
                continue
            assert {each for each in wanted if each in code} <= set(ends), symbol
    assert len(symbols) > 1000
    # Written in assembly, all of them.
    assert len(unclear) < 10, unclear


CPP = r"""
#include <stdexcept>
struct Page { virtual int show(int) = 0; };
extern "C" {
__attribute__((noinline)) int other(int x) { return x * 7; }
__attribute__((noinline)) int handle(int x)
{
    if (__builtin_expect(x > 100, 0))
        throw std::runtime_error("many");
    if (x == 3)
        return other(x + 1);
    return x / 3;
}
__attribute__((noinline)) int choose(int x, volatile int *y)
{
    switch (x) {
    case 0: *y = 3; break;
    case 1: *y = *y + 5; break;
    case 2: *y = *y * 9; break;
    case 3: *y = *y / 5; break;
    case 4: *y = 77; *y = 78; break;
    case 5: *y = *y % 11; break;
    case 6: *y = *y ^ 11; break;
    }
    return *y;
}
__attribute__((noinline)) int show(Page *page, int x) { return page->show(x); }
__attribute__((noinline)) int call(int (*const *table)(int), long n, int x) { return table[n](x); }
__attribute__((noinline)) int call_it(int (*function)(int), int x) { return function(x); }
__attribute__((noinline, noreturn)) void leave(int x) { throw std::runtime_error("gone"); }
}
int main(int argc, char **argv)
{
    volatile int y = 0;
    try { return handle(argc) + choose(argc, &y); } catch (std::exception &) { return 1; }
}
"""


@pytest.fixture(scope="module")
def cpp_program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(
        tmp_path_factory.mktemp("cpp") / "page.cc.out",
        CPP,
        "-O2",
        "-pie",
        "-fPIE",
        "-fno-if-conversion",
        "-fno-tree-switch-conversion",
    )


def test_ends_of_cpp(cpp_program: Path) -> None:
    instructions = disassemble(cpp_program, "handle")
    (call,) = [each.address for each in instructions if re.match(r"jmp .*<other>", each.text)]
    with Elf(cpp_program) as elf:
        rare = [elf.code_of(each) for each in elf.symbols("handle.cold*")]
    assert len(rare) == 1
    expected = sorted((*returns(instructions), call))
    assert sorted(ends_of(code_of(cpp_program, "handle"), rare, is_go=False)) == expected


def test_a_jump_out_to_who_knows_where_is_refused(cpp_program: Path) -> None:
    with pytest.raises(UnclearCodeError, match="leaves by a conditional jump at 0x"):
        ends_of(code_of(cpp_program, "handle"), is_go=False)


def test_a_switch_in_cpp_is_no_end(cpp_program: Path) -> None:
    instructions = disassemble(cpp_program, "choose")
    assert any(re.match(r"(notrack )?jmp +\*%", each.text) for each in instructions)
    assert ends_of(code_of(cpp_program, "choose"), is_go=False) == returns(instructions)


def test_a_call_of_a_method_at_the_end_is_one(cpp_program: Path) -> None:
    (jump,) = [
        each.address for each in disassemble(cpp_program, "show") if re.match(r"jmp +\*", each.text)
    ]
    assert ends_of(code_of(cpp_program, "show"), is_go=False) == (jump,)


@pytest.mark.parametrize("function", ["call", "call_it"])
def test_a_jump_that_may_be_a_switch_or_a_call_is_refused(cpp_program: Path, function: str) -> None:
    with pytest.raises(UnclearCodeError, match="to where only a register says"):
        ends_of(code_of(cpp_program, function), is_go=False)


def test_what_never_comes_back_has_no_end(cpp_program: Path) -> None:
    with Elf(cpp_program) as elf:
        rare = [elf.code_of(each) for each in elf.symbols("leave.cold*")]
    assert ends_of(code_of(cpp_program, "leave"), rare, is_go=False) == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be disassembled at 0x1000"),
        (b"\x90\x06\xc3", "cannot be disassembled at 0x1001"),
        (b"\xc3\x90\xe8", "cannot be disassembled at 0x1002"),
        (b"\xc3\x48\x89\xc3", "goes on after its last instruction, at 0x1001"),
    ],
)
def test_gaps_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(UnclearCodeError, match=reason):
        ends_of(Code(0x1000, data), is_go=True)


@pytest.mark.parametrize("data", [b"\xc3", b"\xf3\xc3", b"\xc2\x08\x00", b"\xf2\xc3"])
def test_every_kind_of_return(data: bytes) -> None:
    assert ends_of(Code(0x1000, b"\x90" + data), is_go=True) == (0x1001,)


def test_a_loop_to_the_first_instruction_is_no_check_of_the_stack() -> None:
    # dec %eax; je 1f; jmp .-4; 1: ret
    code = Code(0x1000, b"\xff\xc8\x74\x02\xeb\xfa\xc3")
    assert start_of_go(code) == 0x1000
    assert ends_of(code, is_go=True) == (0x1006,)


@pytest.mark.parametrize(
    ("jump", "is_table"),
    [(b"\xff\xe0", True), (b"\xff\xe1", False)],  # *%rax, *%rcx
)
def test_a_tables_distance_is_added_to_what_is_jumped_by(jump: bytes, is_table: bool) -> None:
    # movslq (%rdi,%rax,4),%rax; add %rdi,%rax
    code = Code(0x1000, b"\x48\x63\x04\x87\x48\x01\xf8" + jump)
    if is_table:
        assert ends_of(code, is_go=False) == ()
    else:
        with pytest.raises(UnclearCodeError, match="at 0x1007 to where only a register says"):
            ends_of(code, is_go=False)


@pytest.mark.parametrize(
    ("code", "start"),
    [
        ("f30f1efa 55 c3", 4),  # push %rbp
        ("f30f1efa 4157 c3", 4),  # push %r15
        ("f30f1efa 90 c3", 4),
        ("f30f1efa e900000000", 4),
        ("f30f1efa 4883ec18 c3", 0),  # sub $0x18,%rsp: no cheaper than the mark
        ("55 c3", 0),
        ("c3", 0),
        ("31c0 85ff 7401 c3 c3", 4),  # xor %eax,%eax; test %edi,%edi; je
        ("85ff 0f8401000000 c3 c3", 2),
        ("4889f8 0fb600 488d4008 e800000000 c3", 10),  # mov, movzbl, lea; call
        ("488b4708 53 5b c3", 4),  # mov 8(%rdi),%rax; push %rbx
        ("4889f8 41ff5710 c3", 0),  # mov; call *16(%r15)
        ("4889f8 c3 55 c3", 0),
        # Of the stack pointer or an argument's register a part is changed.
        ("4883ec08 55 5d c3", 0),
        ("b700 bf01000000 55 c3", 0),  # mov $0,%bh; mov $1,%edi
        ("40b701 55 c3", 0),  # mov $1,%dil
        ("4531c0 55 c3", 0),  # xor %r8d,%r8d
        ("f348ab 55 c3", 0),  # rep stos
        ("4899 55 c3", 0),  # cqto
        ("5a 55 c3", 0),  # pop %rdx
        ("0f05 55 c3", 0),  # syscall
        # A loop passes it again: from within, and from a jump whose target only a register tells.
        ("31c0 ffc8 75fc c3", 0),  # dec %eax; jne to it
        ("31c0 53 5b 85c0 75fa c3", 0),  # jne to the push
        ("4889f8 53 5b ffe0", 0),
        ("f30f1efa 53 5b ffe0", 4),
        ("31c0" * 12 + "55 c3", 0),
    ],
)
def test_a_start_is_the_first_instruction_that_the_kernel_does_itself(
    code: str, start: int
) -> None:
    assert start_of(Code(0x1000, bytes.fromhex(code))) == 0x1000 + start


def test_a_loop_from_a_part_that_is_elsewhere_passes_it_again() -> None:
    code = Code(0x1000, bytes.fromhex("31c0 53 5b 85c0 0f85f40f0000 c3"))
    assert start_of(code, [Code(0x2000, bytes.fromhex("e9fdefffff"))]) == 0x1000
    assert start_of(code, [Code(0x2000, bytes.fromhex("e9ffefffff"))]) == 0x1002
    # What is not known may be such a part.
    assert start_of(code) == 0x1000


def test_starts_of_all_functions_of_a_program() -> None:
    """As objdump sees them: a call comes to each straight from the function's beginning."""
    emulated = re.compile(r"push |nop$|call +[0-9a-f]|j\w+ +[0-9a-f]")
    moved = 0
    program = Path(sys._base_executable)
    with Elf(program) as elf:
        instructions = disassemble(program)
        at = {each.address: index for index, each in enumerate(instructions)}
        targets = {
            int(found[1], 16)
            for each in instructions
            if (found := re.match(r"j\w+ +([0-9a-f]+)", each.text))
        }
        for symbol in elf.symbols("*"):
            if not symbol.is_function or not symbol.size or not symbol.is_defined:
                continue
            try:
                start = start_of(elf.code_of(symbol))
            except UnclearCodeError:
                continue
            if start == symbol.address:
                continue
            moved += 1
            passed = instructions[at[symbol.address] : at[start]]
            assert emulated.match(instructions[at[start]].text), symbol
            assert not any(re.match(r"call|j|ret|push|pop|sub .*%[re]?sp", e.text) for e in passed)
            assert targets.isdisjoint(each.address for each in passed[1:])
            assert start not in targets
    assert moved > 20

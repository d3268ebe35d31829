# SPDX-License-Identifier: Apache-2.0
"""Where a function ends, from its instructions: each return, and each jump to somewhere else.

A return probe replaces the return address on the stack. Whoever looks for that
address kills the process: Go when it moves the stack, and what throws an
exception through the function. Their functions' ends are probed one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

import capstone
from capstone import CsInsn, x86

from otelbpf.userspace.code import Code

#: How many instructions the check of the stack's size has at most, at a Go function's start.
_CHECK = 10
#: How many instructions before its jump a table is read at most.
_TABLE = 6
#: After these, or a call of what never returns, nothing follows.
_LAST_INSTRUCTIONS = (
    x86.X86_INS_UD2,
    x86.X86_INS_HLT,
    x86.X86_INS_INT3,
    x86.X86_INS_NOP,
    x86.X86_INS_CALL,
)


_ENDBR64 = b"\xf3\x0f\x1e\xfa"
#: What the kernel does in a probed instruction's place: to push a register, a nop, jumps and a call
#: (arch/x86/kernel/uprobes.c). All else the processor executes itself, with an interrupt after it.
_EMULATED = (
    *(bytes([code]) for code in range(0x50, 0x58)),
    *(bytes([0x41, code]) for code in range(0x50, 0x58)),
    *(b"\x90", b"\xe8", b"\xe9", b"\xeb"),
    *(bytes([code]) for code in range(0x70, 0x80)),
    *(bytes([0x0F, code]) for code in range(0x80, 0x90)),
)
#: How many instructions of a function are looked at for one that the kernel emulates.
_PROLOGUE = 12
#: What nothing before a function's probe may change, by all their names: the stack pointer and what
#: has arguments.
_KEPT = frozenset(
    getattr(x86, f"X86_REG_{name}")
    for name in (
        *("RSP", "ESP", "SP", "SPL", "RDI", "EDI", "DI", "DIL", "RSI", "ESI", "SI", "SIL"),
        *("RDX", "EDX", "DX", "DL", "DH", "RCX", "ECX", "CX", "CL", "CH"),
        *("R8", "R8D", "R8W", "R8B", "R9", "R9D", "R9W", "R9B"),
    )
)
#: Whatever goes somewhere else, or may.
_LEAVES = (
    capstone.CS_GRP_JUMP,
    capstone.CS_GRP_CALL,
    capstone.CS_GRP_RET,
    capstone.CS_GRP_INT,
    capstone.CS_GRP_IRET,
    capstone.CS_GRP_PRIVILEGE,
)


class UnclearCodeError(Exception):
    """Why the ends of a function cannot be told; a clause without its subject."""


def ends_of(function: Code, rare: Sequence[Code] = (), *, is_go: bool) -> tuple[int, ...]:
    """The addresses of the instructions that leave a function; none: it never comes back.

    Args:
        rare: parts of it that the compiler may have put elsewhere.
        is_go: the Go compiler wrote it.
    Raises:
        UnclearCodeError: an end could be missed, or something else taken for one.
    """
    instructions = _decode(function)
    targets = {_target(each) for each in instructions if _is_jump(each)}
    parts = [function]
    for part in rare:
        if any(target in part for target in targets):
            parts.append(part)
            instructions += _decode(part)
    return tuple(
        each.address
        for index, each in enumerate(instructions)
        if each.group(capstone.CS_GRP_RET)
        or (_is_jump(each) and _leaves(instructions, index, parts, is_go))
    )


def start_of(function: Code, rare: Sequence[Code] = ()) -> int:
    """Where to probe a function's start: a call passes it once, with the stack as it was.

    That is the first instruction that the kernel does itself when it is probed, which takes a
    fraction of the time, if each call comes to it straight from the first one, with all arguments
    where they were; else the first one.

    Args:
        rare: parts of it that the compiler may have put elsewhere.
    Raises:
        UnclearCodeError: it cannot be disassembled.
    """
    instructions = _decode(function)
    parts = (function, *rare)
    jumps = [each for part in parts for each in _decode(part) if _is_jump(each)]
    targets = {_target(each) for each in jumps}
    # Where only a register says where to, and in a part that is not known, may be a jump back; but
    # none leads between a mark of a jump's target and what follows it.
    is_clear = all(
        target is not None and (each.id == x86.X86_INS_JMP or any(target in part for part in parts))
        for each in jumps
        for target in [_target(each)]
    )
    far = _PROLOGUE if is_clear else 1 + function.data.startswith(_ENDBR64)
    for each in instructions[:far]:
        if each.address in targets and each is not instructions[0]:
            break
        if each.bytes.startswith(_EMULATED):
            return int(each.address)
        if any(map(each.group, _LEAVES)) or not _KEPT.isdisjoint(each.regs_access()[1]):
            break
    return function.address


def start_of_go(function: Code) -> int:
    """The first instruction of a Go function that a call passes only once.

    A function that finds its stack too small has it grown, and begins again. So this is the
    instruction after that check: nothing is on the stack yet, and the arguments are where they
    were. The check's failure leads behind the body, to a call of runtime.morestack and a jump
    to the first instruction.

    Raises:
        UnclearCodeError: it cannot be disassembled.
    """
    instructions = _decode(function)
    start = function.address
    again = next(
        (
            each.address
            for each in reversed(instructions)
            if each.id == x86.X86_INS_JMP and _target(each) == start
        ),
        None,
    )
    if again is None:
        return start
    # A large frame's check has two jumps.
    for each in takewhile(lambda each: each.id != x86.X86_INS_CALL, instructions[:_CHECK]):
        if _is_jump(each):
            if not _only_grows(instructions, _target(each), again):
                break
            start = each.address + each.size
    return start


def _only_grows(instructions: list[CsInsn], first: int | None, again: int) -> bool:
    """Is there, from `first` to the jump back, one call and no other way out?"""
    if first is None:
        return False
    block = [each for each in instructions if first <= each.address < again]
    calls = sum(each.id == x86.X86_INS_CALL for each in block)
    return calls == 1 and not any(_is_jump(e) or e.group(capstone.CS_GRP_RET) for e in block)


def _decode(code: Code) -> list[CsInsn]:
    disassembler = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    disassembler.detail = True
    instructions = list(disassembler.disasm(code.data, code.address))
    decoded = sum(each.size for each in instructions)
    if not code.data or decoded != len(code.data):
        raise UnclearCodeError(f"cannot be disassembled at {code.address + decoded:#x}")
    last = instructions[-1]
    if not (_is_jump(last) or last.group(capstone.CS_GRP_RET) or last.id in _LAST_INSTRUCTIONS):
        raise UnclearCodeError(f"goes on after its last instruction, at {last.address:#x}")
    return instructions


def _is_jump(each: CsInsn) -> bool:
    return bool(each.group(capstone.CS_GRP_JUMP))


def _target(jump: CsInsn) -> int | None:
    """Where a jump goes; None: a register or memory says."""
    operand = jump.operands[-1]
    return operand.imm if operand.type == x86.X86_OP_IMM else None


def _leaves(instructions: list[CsInsn], index: int, parts: list[Code], is_go: bool) -> bool:
    jump = instructions[index]
    target = _target(jump)
    if target is None:
        return not _reads_table(instructions, index, is_go)
    if any(target in part for part in parts):
        return False
    if jump.id != x86.X86_INS_JMP:
        raise UnclearCodeError(f"leaves by a conditional jump at {jump.address:#x}")
    return True


def _reads_table(instructions: list[CsInsn], index: int, is_go: bool) -> bool:
    """Is a jump to what a register or memory says a `switch` statement's, not a call at the end?

    Go's compiler puts an index into the jump itself, and only there. Elsewhere such a jump may
    as well call by an array of functions; a table that makes no demands on where the program is
    loaded holds distances, which are read with their sign and added to the table's address.
    """
    jump = instructions[index]
    operand = jump.operands[-1]
    has_index = operand.type == x86.X86_OP_MEM and operand.mem.index
    if is_go or (operand.type == x86.X86_OP_MEM and not has_index):
        return bool(has_index)
    before = instructions[max(index - _TABLE, 0) : index]
    reads = any(
        each.id == x86.X86_INS_MOVSXD
        and each.operands[1].type == x86.X86_OP_MEM
        and each.operands[1].mem.index
        for each in before
    )
    adds = any(
        each.id == x86.X86_INS_ADD and each.operands[0].reg == operand.reg for each in before
    )
    if not has_index and reads and adds:
        return True
    raise UnclearCodeError(f"goes on at {jump.address:#x} to where only a register says")

# SPDX-License-Identifier: Apache-2.0
"""Where a USDT probe's arguments are while it is hit, from what the assembler wrote down."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum


class ArgumentKind(StrEnum):
    """Where an argument is."""

    REGISTER = "register"
    MEMORY = "memory"
    CONSTANT = "constant"


@dataclass(frozen=True)
class UsdtArgument:
    """One argument of a USDT probe at one of its locations.

    Attributes:
        size: bytes: 1, 2, 4 or 8.
        register: that has it, or the address that `displacement` is added to; by its name in
            struct pt_regs, bpf/kernel/registers.h. Empty for a constant.
        displacement: in bytes from the register's value, for memory; a constant's value; else 0.
    """

    size: int
    is_signed: bool
    kind: ArgumentKind
    register: str
    displacement: int


def _registers() -> dict[str, str]:
    """The assembler's names, of all sizes, to those of struct pt_regs."""
    names = {"rip": "ip"}
    for letter in "abcd":
        names |= dict.fromkeys(
            (f"r{letter}x", f"e{letter}x", f"{letter}x", f"{letter}l"), f"{letter}x"
        )
    for pair in ("si", "di", "bp", "sp"):
        names |= dict.fromkeys((f"r{pair}", f"e{pair}", pair, f"{pair}l"), pair)
    for number in range(8, 16):
        name = f"r{number}"
        names |= dict.fromkeys((name, f"{name}d", f"{name}w", f"{name}b"), name)
    return names


_REGISTERS = _registers()
_SIZES = (1, 2, 4, 8)
_ARGUMENT = re.compile(
    r"(?P<size>-?\d+)@(?:"
    r"\$(?P<constant>-?(?:0x[0-9a-f]+|\d+))"
    r"|%(?P<register>\w+)"
    r"|(?P<displacement>-?(?:0x[0-9a-f]+|\d+))?\(%(?P<base>\w+)\)"
    r")"
)


def parse_usdt_arguments(text: str) -> tuple[UsdtArgument, ...]:
    """Read a USDT note's arguments, such as `8@%rbp -4@-24(%rbp) 4@$5`.

    A size below 0 is a signed argument's. Written otherwise (indexed memory, symbols, vector
    registers, the second byte of a register) they are refused, not guessed.

    Raises:
        ValueError: the argument that is not understood.
    Source:
        sourceware.org/systemtap/wiki/UserSpaceProbeImplementation, "Argument Format"
    """
    return tuple(_argument(each) for each in text.split())


def _argument(text: str) -> UsdtArgument:
    match = _ARGUMENT.fullmatch(text)
    if not match or abs(int(match["size"])) not in _SIZES:
        raise ValueError(text)
    size = int(match["size"])
    kind, register, displacement = ArgumentKind.CONSTANT, "", match["constant"]
    if displacement is None:
        kind = ArgumentKind.REGISTER if match["register"] else ArgumentKind.MEMORY
        register = _REGISTERS.get(match["register"] or match["base"], "")
        displacement = match["displacement"] or "0"
        if not register:
            raise ValueError(text)
    return UsdtArgument(abs(size), size < 0, kind, register, int(displacement, 0))

# SPDX-License-Identifier: Apache-2.0
"""The arguments of USDT probes, as the assembler writes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from otelbpf.userspace import usdt
from otelbpf.userspace.usdt import ArgumentKind, UsdtArgument, parse_usdt_arguments

REGISTERS_H = Path(__file__).resolve().parents[2] / "bpf/kernel/registers.h"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8@%rbp", UsdtArgument(8, False, ArgumentKind.REGISTER, "bp", 0)),
        ("8@%r12", UsdtArgument(8, False, ArgumentKind.REGISTER, "r12", 0)),
        ("-4@%eax", UsdtArgument(4, True, ArgumentKind.REGISTER, "ax", 0)),
        ("2@%r8w", UsdtArgument(2, False, ArgumentKind.REGISTER, "r8", 0)),
        ("-1@%sil", UsdtArgument(1, True, ArgumentKind.REGISTER, "si", 0)),
        ("-8@-24(%rbp)", UsdtArgument(8, True, ArgumentKind.MEMORY, "bp", -24)),
        ("-4@112(%rsp)", UsdtArgument(4, True, ArgumentKind.MEMORY, "sp", 112)),
        ("8@(%r15)", UsdtArgument(8, False, ArgumentKind.MEMORY, "r15", 0)),
        ("4@$5", UsdtArgument(4, False, ArgumentKind.CONSTANT, "", 5)),
        ("-4@$-1", UsdtArgument(4, True, ArgumentKind.CONSTANT, "", -1)),
        ("8@$0x10", UsdtArgument(8, False, ArgumentKind.CONSTANT, "", 16)),
    ],
)
def test_one_argument(text: str, expected: UsdtArgument) -> None:
    assert parse_usdt_arguments(text) == (expected,)


def test_several_arguments_keep_their_order() -> None:
    found = parse_usdt_arguments("8@%rbp 8@%r12 -4@%eax")
    assert [each.register for each in found] == ["bp", "r12", "ax"]
    assert parse_usdt_arguments("") == ()


@pytest.mark.parametrize(
    "text",
    [
        "8@%ah",
        "8f@%xmm0",
        "4@counter(%rip)",
        "8@-8(%rbp,%rax,8)",
        "3@%eax",
        "%rax",
        "8@",
        "8@5",
        "8@%fs:0",
    ],
)
def test_what_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        parse_usdt_arguments(f"8@%rax {text}")


def test_registers_are_fields_of_the_programs_struct() -> None:
    body = re.search(r"struct pt_regs \{(.*?)\};", REGISTERS_H.read_text(), re.DOTALL)
    fields = set(re.findall(r"\w+(?=[,;])", body[1]))
    general = {f"r{number}" for number in range(8, 16)} | {
        "ax",
        "bx",
        "cx",
        "dx",
        "si",
        "di",
        "bp",
        "sp",
    }
    assert set(usdt._REGISTERS.values()) == general | {"ip"}
    assert general | {"ip"} <= fields

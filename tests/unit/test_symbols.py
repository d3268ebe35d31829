# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of a function, as /proc/kallsyms tells it."""

from __future__ import annotations

import pytest

from otelbpf.kernel.symbols import Symbols

KALLSYMS = b"""\
ffffffff81000010 T whole
ffffffff81000020 t with_cold_code
ffffffff81000030 t with_cold_code.cold
ffffffff81000040 t thin_lto.llvm.1234567
ffffffff81000050 t changed.isra.0
ffffffff81000060 t specialised
ffffffff81000070 t specialised.constprop.0
ffffffff81000080 t split
ffffffff81000090 t split.part.0
ffffffff810000a0 t split.part.0.cold
ffffffff810000b0 T not_whole
ffffffff810000c0 T wholesale
ffffffffc0000000 t in_a_module\t[otelbpf_test]
ffffffff810000d0 t changed.isra.0.cold
ffffffff810000e0 t last"""


@pytest.mark.parametrize(
    ("function", "variants"),
    [
        ("whole", ["whole"]),
        ("with_cold_code", ["with_cold_code", "with_cold_code.cold"]),
        ("changed", ["changed.isra.0", "changed.isra.0.cold"]),
        ("split", ["split", "split.part.0", "split.part.0.cold"]),
        ("in_a_module", ["in_a_module"]),
        ("hole", []),
        ("last", ["last"]),
    ],
)
def test_variants(function: str, variants: list[str]) -> None:
    assert Symbols(KALLSYMS).variants(function) == variants


@pytest.mark.parametrize("function", ["whole", "with_cold_code", "in_a_module", "last"])
def test_what_can_be_probed(function: str) -> None:
    assert Symbols(KALLSYMS).why_not_probed(function) is None


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("gone", "this kernel has no function gone, or it was inlined everywhere"),
        (
            "changed",
            "the compiler left only changed.isra.0 of changed, whose arguments may be others",
        ),
        ("specialised", "some callers of specialised use specialised.constprop.0 instead"),
        (
            "thin_lto",
            "the compiler left only thin_lto.llvm.1234567 of thin_lto, whose arguments "
            "may be others",
        ),
        ("split", "some callers of split use split.part.0 instead"),
    ],
)
def test_what_a_probe_would_miss(function: str, reason: str) -> None:
    assert Symbols(KALLSYMS).why_not_probed(function) == reason


def test_no_symbols_at_all() -> None:
    assert Symbols(b"").why_not_probed("whole") is not None


def test_the_running_kernel_tells() -> None:
    assert Symbols.of_kernel().why_not_probed("tcp_rcv_established") is None

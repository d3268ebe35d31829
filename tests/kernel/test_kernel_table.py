# SPDX-License-Identifier: Apache-2.0
"""What docs/kernels.md says of the running kernel is what it offers."""

from __future__ import annotations

import pytest
from kernel_table import BEGIN, END, PAGE, column, parse, render

from otelbpf.kernel.check import examine

pytestmark = pytest.mark.guest

RENEW = "tests/vm/kernel-table writes it anew"


def test_the_page_says_what_this_kernel_offers() -> None:
    name, chosen, forced = column(examine((), None).as_json())
    written = parse(PAGE.read_text())
    if name not in written:
        pytest.skip(f"docs/kernels.md has no column {name}, but {', '.join(written)}")
    assert written[name] == (chosen, forced), RENEW


def test_a_page_is_read_as_it_is_written() -> None:
    mine = column(examine((), None).as_json())
    other = ("1.0", ["other"] * len(mine[1]), ["another"] * len(mine[2]))
    page = f"before\n{BEGIN}{render([mine, other])}{END}after\n"
    assert parse(page) == {name: (chosen, forced) for name, chosen, forced in (mine, other)}

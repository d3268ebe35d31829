# SPDX-License-Identifier: Apache-2.0
"""A selection of the kernel tests on stock kernels; `scripts/test --vm` runs them all there."""

from __future__ import annotations

import re

import pytest
from background import Guest
from kernels import TESTED

TIMEOUT_S = 2700
CLOSING_LINE = re.compile(r"^=+ (.*\b[1-9]\d* passed\b.*) =+$", re.MULTILINE)


@pytest.mark.parametrize("kernel", TESTED)
def test_kernel_tests_pass_on(
    kernel: str, guests: dict[str, Guest], closing_lines: dict[str, str]
) -> None:
    code, said = guests[kernel].wait(TIMEOUT_S)
    release = said.partition("\n")[0]
    if code or not release.startswith(f"{kernel}."):
        pytest.fail(f"{kernel}: exit code {code}\n{said}", pytrace=False)
    sums = CLOSING_LINE.search(said)
    if sums is None:
        pytest.fail(f"nothing passed on {kernel}\n{said}", pytrace=False)
    closing_lines[release] = sums[1]

# SPDX-License-Identifier: Apache-2.0
"""A selection of the kernel tests on stock kernels; `scripts/test --vm` runs them all there."""

from __future__ import annotations

import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from kernels import TESTED

KERNEL_TESTS = Path(__file__).resolve().parent / "kernel-tests"
# pytest's arguments.
SELECTION = ("-m", "guest")
TIMEOUT_S = 2700
CLOSING_LINE = re.compile(r"^=+ (.*\b[1-9]\d* passed\b.*) =+$", re.MULTILINE)


def run_tests(kernel: str) -> subprocess.CompletedProcess[str]:
    command = [KERNEL_TESTS, kernel, "--color=no", "--tb=short", *SELECTION]
    return subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)


@pytest.fixture(scope="module")
def runs() -> dict[str, subprocess.CompletedProcess[str]]:
    """What pytest said on each kernel.

    They run at the same time, but nothing else does: here is no test that measures.
    """
    with ThreadPoolExecutor(len(TESTED)) as pool:
        return dict(zip(TESTED, pool.map(run_tests, TESTED), strict=True))


@pytest.mark.parametrize("kernel", TESTED)
def test_kernel_tests_pass_on(
    kernel: str,
    runs: dict[str, subprocess.CompletedProcess[str]],
    closing_lines: dict[str, str],
) -> None:
    done = runs[kernel]
    said = f"{kernel}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
    release = done.stdout.partition("\n")[0]
    if done.returncode or not release.startswith(f"{kernel}."):
        pytest.fail(said, pytrace=False)
    sums = CLOSING_LINE.search(done.stdout)
    if sums is None:
        pytest.fail(f"nothing passed on {said}", pytrace=False)
    closing_lines[release] = sums[1]

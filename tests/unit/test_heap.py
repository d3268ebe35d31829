# SPDX-License-Identifier: Apache-2.0
"""What becomes of freed memory, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

# Two blocks are a little less than what is kept.
ROUNDS, BLOCKS, BLOCK_BYTES = 20, 2, 3_600_000
PAGES = ROUNDS * BLOCKS * BLOCK_BYTES // resource.getpagesize()

PROGRAM = f"""
import resource
from otelbpf.host.heap import keep_what_a_batch_takes

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    return int(open("/proc/self/statm").read().split()[1])

def take():
    return [b"x" * {BLOCK_BYTES} for _ in range({BLOCKS})]

keep_what_a_batch_takes()
take(), take()
before = faults()
for _ in range({ROUNDS}):
    take()
print(faults() - before)
before = resident()
blocks = [b"x" * (5 << 20) for _ in range(8)]
held = resident() - before
del blocks
print(held, resident() - before)
"""


@pytest.fixture(scope="module")
def said() -> list[int]:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout
    return [int(word) for word in said.split()]


def test_what_a_batch_takes_is_there_for_the_next_one(said: list[int]) -> None:
    """Without, each page of each round is asked for anew."""
    assert said[0] < PAGES // 10


def test_what_is_larger_is_given_back(said: list[int]) -> None:
    _, held, left = said
    assert held > (32 << 20) // resource.getpagesize()
    assert left < held // 10

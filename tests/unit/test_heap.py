# SPDX-License-Identifier: Apache-2.0
"""What becomes of freed memory, in a process of its own."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

# Two blocks are a little less than what is kept.
ROUNDS, BLOCKS, BLOCK_BYTES = 20, 2, 3_600_000
PAGES_A_ROUND = BLOCKS * BLOCK_BYTES // resource.getpagesize()
THREADS = 4

PROGRAM = f"""
import resource
import threading
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

def take_and_stay():
    take()
    taken.wait()
    over.wait()

taken, over = threading.Barrier({THREADS} + 1), threading.Event()
before = resident()
for _ in range({THREADS}):
    threading.Thread(target=take_and_stay).start()
taken.wait()
print(resident() - before)
over.set()
"""


@pytest.fixture(scope="module")
def said() -> list[int]:
    said = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout
    return [int(word) for word in said.split()]


def test_what_a_batch_takes_is_there_for_the_next_one(said: list[int]) -> None:
    """Without, each page of each round is asked for anew."""
    assert said[0] < ROUNDS * PAGES_A_ROUND // 10


def test_what_is_larger_is_given_back(said: list[int]) -> None:
    _, held, left, _ = said
    assert held > (32 << 20) // resource.getpagesize()
    assert left < held // 10


def test_it_is_kept_for_all_threads_together(said: list[int]) -> None:
    """Without, each would keep its own."""
    assert said[3] < 2 * PAGES_A_ROUND

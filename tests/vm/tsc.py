# SPDX-License-Identifier: Apache-2.0
"""How fast this machine's TSC runs, of which a guest's is a copy."""

from __future__ import annotations

import ctypes
import mmap
import time
from collections.abc import Callable

_PERIOD_S = 0.1
_ATTEMPTS = 20
#: rdtsc; shl rdx, 32; or rax, rdx; ret
_CODE = bytes.fromhex("0f31 48c1e220 4809d0 c3")


def frequency_khz() -> int:
    """The frequency, to some ten parts in a million.

    Raises:
        OSError: this machine forbids code that is not a file's.
    """
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as memory:
        memory.write(_CODE)
        start = ctypes.c_char.from_buffer(memory)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(start))
        first_tsc, first_ns = _together(read)
        time.sleep(_PERIOD_S)
        second_tsc, second_ns = _together(read)
        del start  # or the memory cannot be closed
    return round((second_tsc - first_tsc) * 1_000_000 / (second_ns - first_ns))


def _together(read_tsc: Callable[[], int]) -> tuple[int, int]:
    """The TSC and the clock; of several looks the one that was interrupted least."""
    looks = []
    for _ in range(_ATTEMPTS):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        tsc = read_tsc()
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        looks.append((after - before, tsc, (before + after) // 2))
    _, tsc, now_ns = min(looks)
    return tsc, now_ns

# SPDX-License-Identifier: Apache-2.0
"""What becomes of memory that this process has freed."""

from __future__ import annotations

import ctypes

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 8 << 20, 4 << 20


def keep_what_a_batch_takes() -> None:
    """Has the C library keep 8 MiB for the next batch, and give all else back.

    Left alone, glibc goes by what was freed before: it gives back what is needed again at once,
    which is a sixth of a batch's time, and keeps more the longer it runs. And each thread would
    keep as much for itself, though of ours only one at a time does much.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        mallopt(_M_ARENA_MAX, 1)

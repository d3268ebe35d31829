# SPDX-License-Identifier: Apache-2.0
"""Maps that a test lays out and writes to in the kernel's place."""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt


class KernelMaps:
    """Arrays in memory that loader.Programs would hand out by name."""

    def __init__(self) -> None:
        self._fds: dict[str, int] = {}
        self._maps: list[mmap.mmap] = []

    def add(self, name: str, dtype: npt.DTypeLike, count: int) -> np.ndarray:
        """(count,) dtype, all zeros; let go of it before close()."""
        self._fds[name] = os.memfd_create(name)
        size = count * np.dtype(dtype).itemsize
        os.ftruncate(self._fds[name], size)
        self._maps.append(mmap.mmap(self._fds[name], size))
        return np.frombuffer(self._maps[-1], dtype, count)

    def map_fd(self, name: str) -> int:
        return self._fds[name]

    def close(self) -> None:
        for mapped in self._maps:
            mapped.close()
        for fd in self._fds.values():
            os.close(fd)

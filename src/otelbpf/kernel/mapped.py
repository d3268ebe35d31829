# SPDX-License-Identifier: Apache-2.0
"""An array of the kernel's in this process's memory."""

from __future__ import annotations

import contextlib
import mmap

import numpy as np
import numpy.typing as npt

_VALUE_ALIGNMENT = 8


class MappedArray:
    """A BPF map of type array, mapped.

    Args:
        map_fd: of a map that was made with BPF_F_MMAPABLE.
        dtype: of its values; a multiple of 8 bytes, as the kernel rounds it up to.
        count: of its values.
        writable: may this process write to it?
    Attributes:
        values: (count,) dtype. The kernel's programs write to it at any time.
    """

    def __init__(
        self, map_fd: int, dtype: npt.DTypeLike, count: int, *, writable: bool = False
    ) -> None:
        size = np.dtype(dtype).itemsize
        assert size % _VALUE_ALIGNMENT == 0, f"{dtype} is no multiple of {_VALUE_ALIGNMENT} bytes"
        access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        self._map = mmap.mmap(map_fd, count * size, prot=access)
        self.values = np.frombuffer(self._map, dtype, count)

    def close(self) -> None:
        """Unmaps it: once nothing refers to its values any more, as an error on its way out may."""
        del self.values
        with contextlib.suppress(BufferError):
            self._map.close()

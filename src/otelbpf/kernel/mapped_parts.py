# SPDX-License-Identifier: Apache-2.0
"""A large array of the kernel's, of which this process maps only those parts that it looks at.

The kernel maps all pages of an array at once, and what is mapped counts as resident, though it is
the kernel's memory, and counted as that already.
"""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
import threading
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

#: To map one and unmap it takes 32 us; smaller ones take more for each byte.
PART_BYTES = 1 << 20
_PART_BITS = PART_BYTES.bit_length() - 1
# Addresses that are reserved: what touches them ends the process.
_NOTHING = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
# asm-generic/mman-common.h
_NO_ACCESS = 0
_MAP_FIXED = 0x10
_FAILED = ctypes.c_void_p(-1).value


class PartlyMappedArray:
    """A BPF map of one value, an array. Close it once nothing refers to its values any more.

    Args:
        map_fd: of a map that was made with BPF_F_MMAPABLE; open until this is closed.
        dtype, count: of the array.
        writable: may this process write to it?
        most: so many parts of PART_BYTES may stay mapped; None: all may.
    Attributes:
        values: (count,) dtype. The kernel's programs write to it at any time. Only rows may be
            touched that reach() was asked for last; where all parts may stay, that it was ever.
    """

    def __init__(
        self,
        map_fd: int,
        dtype: npt.DTypeLike,
        count: int,
        *,
        most: int | None = None,
        writable: bool = False,
    ) -> None:
        self._fd = map_fd
        self._row_bytes = np.dtype(dtype).itemsize
        self._bytes = count * self._row_bytes
        self._access = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        #: The parts that are mapped, those first that were not asked for for longest.
        self._mapped: dict[int, None] = {}
        parts = -(-self._bytes // PART_BYTES)
        self._most = parts if most is None else most
        self._is_wanted = np.zeros(parts, bool)
        self._lock = threading.Lock()
        self._address = _map(None, self._bytes, _NO_ACCESS, _NOTHING)
        octets = (ctypes.c_char * self._bytes).from_address(self._address)
        self.values = np.frombuffer(memoryview(octets), dtype, count)

    def reach(self, rows: np.ndarray) -> None:
        """Maps what has these rows, and lets go of what was not asked for for longest."""
        begins = rows.astype(np.int64) * self._row_bytes
        ends = begins + (self._row_bytes - 1)
        with self._lock:
            # Quicker than a set of them, where there are many rows.
            self._is_wanted[begins >> _PART_BITS] = True
            self._is_wanted[ends >> _PART_BITS] = True
            wanted = np.flatnonzero(self._is_wanted)
            self._is_wanted[wanted] = False
            self._reach(wanted.tolist())

    def reach_range(self, begin: int, end: int) -> None:
        """The same with the rows from `begin` to `end`."""
        last = -(-min(end * self._row_bytes, self._bytes) // PART_BYTES)
        with self._lock:
            self._reach(range(begin * self._row_bytes // PART_BYTES, last))

    def _reach(self, wanted: Sequence[int]) -> None:
        for part in wanted:
            if part not in self._mapped:
                self._map(part)
            self._mapped.pop(part, None)
            self._mapped[part] = None
        excess = list(self._mapped)[: max(0, len(self._mapped) - self._most)]
        self._unmap([part for part in excess if part not in wanted])

    def _map(self, part: int) -> None:
        at, length = self._place_of(part)
        flags = mmap.MAP_SHARED | _MAP_FIXED
        _map(self._address + at, length, self._access, flags, self._fd, at)

    def _unmap(self, parts: Iterable[int]) -> None:
        for part in parts:
            at, length = self._place_of(part)
            _map(self._address + at, length, _NO_ACCESS, _NOTHING | _MAP_FIXED)
            del self._mapped[part]

    def _place_of(self, part: int) -> tuple[int, int]:
        """Where it begins, and how long it is."""
        at = part * PART_BYTES
        return at, min(PART_BYTES, self._bytes - at)

    def close(self) -> None:
        """Unmaps all of it, and gives its addresses back."""
        del self.values
        _libc().munmap(self._address, self._bytes)


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (
        ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
    )  # fmt: skip
    libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    return libc


def _map(
    address: int | None, length: int, access: int, flags: int, fd: int = -1, offset: int = 0
) -> int:
    """mmap(2), which Python's own leaves no choice of the address."""
    mapped: int = _libc().mmap(address, length, access, flags, fd, offset)
    if mapped == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return mapped

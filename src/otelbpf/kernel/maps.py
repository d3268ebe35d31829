# SPDX-License-Identifier: Apache-2.0
"""The maps that the programs look up or call: each MAP() of bpf/.

Those that the programs have the addresses of are in arrays.py.
"""

from __future__ import annotations

import os
from collections.abc import Collection

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.arrays import NO_MAP
from otelbpf.kernel.records import MAPS
from otelbpf.kernel.settings import Part

# What a map is for that not all need.
_OF_PARTS = {
    "python_sites": Part.HANDLERS,
    "python_paths": Part.HANDLERS,
    "goroutines": Part.GO_HANDLERS,
}


class Maps:
    """The maps, empty. Close it to let go of them; loaded programs keep theirs.

    Args:
        parts: that there are.
    Attributes:
        fds: of each one, by its name in bpf/; NO_MAP: it is not needed.
    Raises:
        KernelError: the kernel has no memory for one, or makes none.
    """

    def __init__(self, parts: Collection[Part]) -> None:
        self.fds: dict[str, int] = {}
        for name, shape in MAPS.items():
            try:
                self.fds[name] = (
                    libbpf.create_map(name, shape) if _is_needed(name, parts) else NO_MAP
                )
            except OSError as error:
                self.close()
                raise KernelError(
                    f"the kernel made no map for {name} ({error.strerror}): see what "
                    "`otelbpf check` says"
                ) from error

    def put(self, name: str, key: int | bytes, value: bytes) -> None:
        """Puts a value into a map.

        Args:
            key: a number, or a struct as the value.
            value: a struct of bpf/, as it lies in memory.
        Raises:
            OSError: the kernel's refusal: there is no room, for one.
        """
        libbpf.update_map(self.fds[name], _key(name, key), value)

    def delete(self, name: str, key: int) -> None:
        """Takes a key out of a map.

        Raises:
            OSError: the kernel's refusal: it is not there, for one.
        """
        libbpf.delete_from_map(self.fds[name], _key(name, key))

    def close(self) -> None:
        """Lets go of the maps."""
        for fd in self.fds.values():
            if fd != NO_MAP:
                os.close(fd)
        self.fds.clear()


def map_bytes(parts: Collection[Part]) -> int:
    """What there is room for in the maps that these parts need: keys and values."""
    needed = [shape for name, shape in MAPS.items() if _is_needed(name, parts)]
    return sum(shape.max_entries * (shape.key_size + shape.value_size) for shape in needed)


def _is_needed(name: str, parts: Collection[Part]) -> bool:
    part = _OF_PARTS.get(name)
    return part is None or part in parts


def _key(name: str, key: int | bytes) -> bytes:
    if isinstance(key, bytes):
        return key
    return key.to_bytes(MAPS[name].key_size, "little")

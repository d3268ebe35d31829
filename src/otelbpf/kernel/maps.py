# SPDX-License-Identifier: Apache-2.0
"""The maps that the programs look up or call: each MAP() of bpf/.

Those that the programs have the addresses of are in arrays.py.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.records import MAPS

# What a map is for that not all need: the macro that is not 0 where it is asked for.
_OF_PARTS = {
    "overflow_places": "SERIES",
    "handshakes": "SERIES",
    "python_sites": "HANDLERS",
    "goroutines": "GO_HANDLERS",
}


class Maps:
    """The maps, empty. Close it to let go of them; loaded programs keep theirs.

    Args:
        macros: what the programs are compiled with: macro -> C.
    Attributes:
        fds: of each one, by its name in bpf/.
    Raises:
        KernelError: the kernel has no memory for one, or makes none.
    """

    def __init__(self, macros: Mapping[str, object]) -> None:
        self.fds: dict[str, int] = {}
        for name, shape in MAPS.items():
            part = _OF_PARTS.get(name)
            if part is not None and not macros.get(part):
                continue
            try:
                self.fds[name] = libbpf.create_map(name, shape)
            except OSError as error:
                self.close()
                raise KernelError(
                    f"the kernel made no map for {name} ({error.strerror}): see what "
                    "`otelbpf check` says"
                ) from error

    def macros(self) -> dict[str, int]:
        """What the programs have to know of them."""
        return {f"FD_{name}": fd for name, fd in self.fds.items()}

    def put(self, name: str, key: int, value: bytes) -> None:
        """Puts a value into a map.

        Args:
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
            os.close(fd)
        self.fds.clear()


def _key(name: str, key: int) -> bytes:
    return key.to_bytes(MAPS[name].key_size, "little")

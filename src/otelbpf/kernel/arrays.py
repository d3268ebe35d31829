# SPDX-License-Identifier: Apache-2.0
"""The arrays that the programs have the addresses of: bpf/state/arrays.h.

Each is the one value of a map of its own.
"""

from __future__ import annotations

import os

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import (
    CONNECTION,
    CONNECTION_SUMS,
    EXCHANGE,
    NOTICES,
    READER,
    RING_ENDS,
    SCRATCH,
    SERIES,
    SERIES_SET,
    SETTINGS,
    STAGE_ORDER,
)

#: Places for orders of stamps, and sets of series' places; powers of two.
STAGE_ORDERS, SERIES_SETS = 256, 8192
# Tasks that read, a power of two.
_READER_SLOTS = 16_384
# Connections in a set of them (bpf/state/connections.h); a power of two.
_WAYS = 8
_MIB = 1 << 20


class Arrays:
    """The arrays' maps, all zeros. Close it to let go of them; loaded programs keep theirs.

    Args:
        limits: how long they are.
    Attributes:
        fds: of each one's map, which may be mapped, by its name.
    Raises:
        KernelError: the kernel has no memory for one, or makes none.
    """

    def __init__(self, limits: Limits) -> None:
        self._sets = -(-limits.connections // _WAYS)
        # A power of two, and twice as many: then few sockets meet in one.
        self._socket_slots = 2 << (limits.connections - 1).bit_length()
        self._limits = limits
        self._cpu_slots = 1 << (libbpf.possible_cpus() - 1).bit_length()
        self.fds: dict[str, int] = {}
        for name, size in self._sizes().items():
            try:
                self.fds[name] = libbpf.create_value(name, size)
            except OSError as error:
                self.close()
                raise KernelError(
                    f"the kernel made no map of {-(-size // _MIB)} MiB for {name} "
                    f"({error.strerror}): see what `otelbpf check` says, or lower --connections, "
                    "--ring or --series"
                ) from error

    def macros(self) -> dict[str, int]:
        """What the programs have to know of them."""
        limits = self._limits
        return {
            **{f"FD_{name}": fd for name, fd in self.fds.items()},
            "SCRATCH_BYTES": SCRATCH.itemsize,
            "CONNECTION_BYTES": CONNECTION.itemsize,
            "READER_BYTES": READER.itemsize,
            "SETTINGS_BYTES": SETTINGS.itemsize,
            "CPU_SLOTS": self._cpu_slots,
            "WAYS": _WAYS,
            "CONNECTION_SETS": self._sets,
            "SOCKET_SLOTS": self._socket_slots,
            "READER_SLOTS": _READER_SLOTS,
            "MAX_EXCHANGES": limits.exchanges,
            "RING_MAX": limits.ring,
            "RING_SLOTS": limits.ring_slots,
            "SERIES": int(bool(limits.series)),
            "MAX_SERIES": limits.series,
            "SERIES_SETS": SERIES_SETS,
            "STAGE_ORDERS": STAGE_ORDERS,
        }

    def map_counts(self) -> MappedArray:
        """What each processor has counted: "counts" of struct scratch, by enum counter."""
        return MappedArray(self.fds["scratches"], SCRATCH, self._cpu_slots)

    def map_settings(self) -> MappedArray:
        """What the agent tells the programs: fields of struct settings."""
        return MappedArray(self.fds["settings"], SETTINGS, 1, writable=True)

    def close(self) -> None:
        """Lets go of the maps."""
        for fd in self.fds.values():
            os.close(fd)
        self.fds.clear()

    def _sizes(self) -> dict[str, int]:
        """Of each in bytes, by its name in bpf/."""
        limits = self._limits
        sizes = {
            "scratches": self._cpu_slots * SCRATCH.itemsize,
            "connections": self._sets * _WAYS * CONNECTION.itemsize,
            "connection_tags": self._sets * _WAYS * 8,
            "socket_places": self._socket_slots * 4,
            "exchanges": limits.exchanges * EXCHANGE.itemsize,
            "readers": _READER_SLOTS * READER.itemsize,
            "settings": SETTINGS.itemsize,
            "ring": limits.ring_slots * 8,
            "ring_ends": RING_ENDS.itemsize,
            "notices": NOTICES.itemsize,
        }
        if limits.series:
            sizes |= {
                "series": limits.series * SERIES.itemsize,
                "series_sets": SERIES_SETS * SERIES_SET.itemsize,
                "stage_orders": STAGE_ORDERS * STAGE_ORDER.itemsize,
                "connection_sums": 2 * CONNECTION_SUMS.itemsize,
            }
        return sizes

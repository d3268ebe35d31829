# SPDX-License-Identifier: Apache-2.0
"""The arrays that the programs have the addresses of: bpf/state/arrays.h.

Each is the one value of a map of its own.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import (
    CONNECTION,
    CONNECTION_SUMS,
    CONNECTION_TAGS,
    EXCHANGE,
    FORWARDED_TEXT,
    NOTICES,
    PROXY_NETWORK,
    READER,
    RING_ENDS,
    SCRATCH,
    SERIES,
    SERIES_SET,
    SETTINGS,
    STAGE_ORDER,
    FixedLength,
)
from otelbpf.kernel.series_rows import SeriesRows

#: The descriptor of what nobody asked for.
NO_MAP = -1
_MIB = 1 << 20


class Arrays:
    """The arrays' maps, all zeros. Close it to let go of them; loaded programs keep theirs.

    Args:
        limits: how long they are.
        keeps_forwarded: is a header to be kept in which proxies say for whom they forward?
    Attributes:
        fds: of each one's map, which may be mapped, by its name; NO_MAP: it is not needed.
        series_rows: which ones of "series" each series has.
    Raises:
        KernelError: the kernel has no memory for one, or makes none.
    """

    def __init__(self, limits: Limits, *, keeps_forwarded: bool = False) -> None:
        self._limits = limits
        self._cpu_slots = _cpu_slots()
        self.series_rows = _series_rows(limits)
        of_each = sizes(limits, keeps_forwarded=keeps_forwarded)
        # The kernel writes zeros all over each.
        with ThreadPoolExecutor() as pool:
            made = {name: pool.submit(_create, name, size) for name, size in of_each.items()}
        self.fds = {name: one.result() for name, one in made.items() if not one.exception()}
        for name, size in of_each.items():
            try:
                made[name].result()
            except OSError as error:
                self.close()
                raise KernelError(
                    f"the kernel made no map of {-(-size // _MIB)} MiB for {name} "
                    f"({error.strerror}): see what `otelbpf check` says, or lower --connections, "
                    "--ring or --series"
                ) from error

    def lengths(self) -> dict[str, int]:
        """What the programs have to know of them: the values of fields of struct configuration."""
        limits = self._limits
        return {
            "series": bool(limits.series),
            "cpu_mask": self._cpu_slots - 1,
            "connection_sets": _connection_sets(limits),
            "connections": _connection_sets(limits) * FixedLength.WAYS,
            "socket_mask": _socket_slots(limits) - 1,
            "max_exchanges": limits.exchanges,
            "ring_max": limits.ring,
            "ring_mask": limits.ring_slots - 1,
            "series_rows": self.series_rows.count,
        }

    def map_counts(self) -> MappedArray:
        """What each processor has counted: "counts" of struct scratch, by enum counter."""
        return MappedArray(self.fds["scratches"], SCRATCH, self._cpu_slots)

    def map_settings(self) -> MappedArray:
        """What the agent tells the programs: fields of struct settings."""
        return MappedArray(self.fds["settings"], SETTINGS, 1, writable=True)

    def map_ports(self, name: str) -> MappedArray:
        """What each port means: 65,536 numbers, of "measured_ports" or "upstream_ports"."""
        ports = np.dtype((np.uint8, FixedLength.PORTS))
        return MappedArray(self.fds[name], ports, 1, writable=True)

    def map_proxy_networks(self) -> MappedArray:
        """From where connections may begin with a header of the PROXY protocol."""
        most = FixedLength.PROXY_NETWORKS_MOST
        return MappedArray(self.fds["proxy_networks"], PROXY_NETWORK, most, writable=True)

    def close(self) -> None:
        """Lets go of the maps."""
        for fd in self.fds.values():
            if fd != NO_MAP:
                os.close(fd)
        self.fds.clear()


def _create(name: str, size: int) -> int:
    return libbpf.create_value(name, size) if size else NO_MAP


def sizes(limits: Limits, *, keeps_forwarded: bool = False) -> dict[str, int]:
    """Of each array in bytes, by its name in bpf/; 0: it is not needed.

    Raises:
        KernelError: the kernel does not say how many processors there may be.
    """
    connections = _connection_sets(limits) * FixedLength.WAYS
    always = {
        "scratches": _cpu_slots() * SCRATCH.itemsize,
        "connections": connections * CONNECTION.itemsize,
        "connection_tags": _connection_sets(limits) * CONNECTION_TAGS.itemsize,
        "socket_places": _socket_slots(limits) * 4,
        "exchanges": limits.exchanges * EXCHANGE.itemsize,
        "readers": FixedLength.READER_SLOTS * READER.itemsize,
        "settings": SETTINGS.itemsize,
        "measured_ports": FixedLength.PORTS,
        "upstream_ports": FixedLength.PORTS,
        "proxy_networks": FixedLength.PROXY_NETWORKS_MOST * PROXY_NETWORK.itemsize,
        "ring": limits.ring_slots * 8,
        "ring_ends": RING_ENDS.itemsize,
        "notices": NOTICES.itemsize,
    }
    of_series = {
        "series": _series_rows(limits).count * SERIES.itemsize,
        "series_sets": FixedLength.SERIES_SETS * SERIES_SET.itemsize,
        "stage_orders": FixedLength.STAGE_ORDERS * STAGE_ORDER.itemsize,
        "connection_sums": 2 * CONNECTION_SUMS.itemsize,
    }
    forwarded_texts = limits.exchanges * FORWARDED_TEXT.itemsize if keeps_forwarded else 0
    return {
        **always,
        **(of_series if limits.series else dict.fromkeys(of_series, 0)),
        "forwarded_texts": forwarded_texts,
    }


def _connection_sets(limits: Limits) -> int:
    return -(-limits.connections // FixedLength.WAYS)


def _socket_slots(limits: Limits) -> int:
    """A power of two, and twice as many as connections: then few sockets meet in one."""
    return 2 << (limits.connections - 1).bit_length()


def _series_rows(limits: Limits) -> SeriesRows:
    return SeriesRows.of(limits.series, libbpf.possible_cpus())


def _cpu_slots() -> int:
    return 1 << (libbpf.possible_cpus() - 1).bit_length()

# SPDX-License-Identifier: Apache-2.0
"""How much memory otelbpf takes, told before it takes any."""

from __future__ import annotations

from otelbpf.host import ulimits
from otelbpf.kernel.arrays import sizes
from otelbpf.kernel.limits import DEFAULT, Limits
from otelbpf.kernel.maps import map_bytes
from otelbpf.kernel.records import SERIES
from otelbpf.kernel.settings import Part

_MIB = 1 << 20
#: What an agent had resident, as bench/export.py measured it with the exporter over gRPC: when all
#: was attached, and at the most while it sent what a load generator asked for. Nearly all of it is
#: Python and its libraries.
AT_READY_MIB, UNDER_LOAD_MIB = 75, 105


def table_bytes(limits: Limits = DEFAULT, *, keeps_forwarded: bool = False) -> int:
    """What lies in the kernel's tables, from the start, where no handlers are measured.

    The kernel adds about a hundredth to keep them by.

    Args:
        keeps_forwarded: is a header kept in which proxies say for whom they forward?
    Raises:
        KernelError: the kernel does not say how many processors there may be.
    """
    arrays = sizes(limits, keeps_forwarded=keeps_forwarded)
    return sum(arrays.values()) + map_bytes((Part.SERVERS,))


def require(limits: Limits = DEFAULT, *, keeps_forwarded: bool = False) -> str:
    """What a run takes, for people.

    Args:
        limits, keeps_forwarded: as for table_bytes().
    Raises:
        KernelError: this process may not have as many addresses; or as table_bytes().
    """
    more = _addresses(limits, keeps_forwarded=keeps_forwarded) - _addresses(DEFAULT)
    ulimits.with_tables(-(-max(0, more) // _MIB)).require()
    tables = table_bytes(limits, keeps_forwarded=keeps_forwarded)
    return (
        f"{-(-tables // _MIB)} MiB of tables in the kernel, with --connections "
        f"{limits.connections}, --ring {limits.ring} and --series {limits.series}; the agent "
        f"itself has about {AT_READY_MIB} MiB resident, {UNDER_LOAD_MIB} under load, as was "
        "measured with the exporter over gRPC"
    )


def _addresses(limits: Limits, *, keeps_forwarded: bool = False) -> int:
    """How many bytes of addresses the agent reserves for tables that it maps in parts.

    For the sums of series it has a table of its own, too.
    """
    of = sizes(limits, keeps_forwarded=keeps_forwarded)
    ours = limits.series * SERIES.itemsize
    return of["exchanges"] + of["forwarded_texts"] + of["series"] + ours

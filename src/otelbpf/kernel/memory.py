# SPDX-License-Identifier: Apache-2.0
"""How much memory otelbpf takes, told before it takes any."""

from __future__ import annotations

from otelbpf.kernel.arrays import sizes
from otelbpf.kernel.limits import DEFAULT, Limits
from otelbpf.kernel.maps import map_bytes
from otelbpf.kernel.settings import Part

_MIB = 1 << 20
#: What an agent had resident, as bench/export.py measured it with the exporter over gRPC: when all
#: was attached, and at the most while it sent what a load generator asked for. Nearly all of it is
#: Python and its libraries.
AT_READY_MIB, UNDER_LOAD_MIB = 75, 105


def table_bytes(limits: Limits = DEFAULT) -> int:
    """What lies in the kernel's tables, from the start, where no handlers are measured.

    The kernel adds about a hundredth to keep them by.

    Raises:
        KernelError: the kernel does not say how many processors there may be.
    """
    return sum(sizes(limits).values()) + map_bytes((Part.SERVERS,))


def told() -> str:
    """What a run takes by default, for people. Raises KernelError as table_bytes()."""
    return (
        f"{-(-table_bytes() // _MIB)} MiB of tables in the kernel, with the default --connections, "
        f"--ring and --series; the agent itself has about {AT_READY_MIB} MiB resident, "
        f"{UNDER_LOAD_MIB} under load, as was measured with the exporter over gRPC"
    )

# SPDX-License-Identifier: Apache-2.0
"""Where interfaces take an XDP program, and who has that place."""

from __future__ import annotations

import socket
from dataclasses import dataclass

from otelbpf.host.interfaces import is_veth
from otelbpf.host.netns import Netns
from otelbpf.kernel import libbpf

#: Why a veth is left alone unless XDP is asked for.
VETH_AND_XDP = "for XDP on a veth its peer would have to send packets of one segment each"


@dataclass(frozen=True)
class XdpSlot:
    """Where one interface takes an XDP program.

    Attributes:
        program: the number of the one that it has; None: none.
    """

    program: int | None
    is_veth: bool


def look_at_xdp(ifindex: int, netns: Netns) -> XdpSlot:
    """An interface's slot, as it is now.

    Raises:
        OSError: there is no such interface.
    """
    return netns.run(
        lambda: XdpSlot(libbpf.xdp_program(ifindex), is_veth(socket.if_indextoname(ifindex)))
    )

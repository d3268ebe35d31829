# SPDX-License-Identifier: Apache-2.0
"""The network interfaces that are measured, and who may have their XDP slots."""

from __future__ import annotations

import fcntl
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum

from pyroute2 import IPRoute

from otelbpf.errors import UsageError
from otelbpf.host.netns import Netns

#: The kinds of interface (ARPHRD_*) whose packets start with an Ethernet header.
_ETHERNET_KINDS = {1, 772}  # Ethernet, loopback
#: Why a veth is left alone unless XDP is asked for.
VETH_AND_XDP = "for XDP on a veth its peer would have to send packets of one segment each"


class Xdp(StrEnum):
    """On which interfaces XDP is wanted."""

    #: Those whose driver has it, whose slot is free, and which it does not slow down.
    AUTO = "auto"
    #: All of them; where the driver has none, the kernel's generic one.
    ON = "on"
    OFF = "off"


@dataclass(frozen=True)
class XdpSlot:
    """Where one interface takes an XDP program.

    Attributes:
        program: the number of the one that it has; None: none.
    """

    program: int | None
    is_veth: bool


def look_at_xdp(interfaces: dict[str, int], netns: Netns) -> dict[str, XdpSlot]:
    """The XDP slots of interfaces, given as name -> ifindex, as they are now."""

    def look() -> dict[str, XdpSlot]:
        slots = {}
        with IPRoute() as route:
            for name, ifindex in interfaces.items():
                link = route.get_links(ifindex)[0]
                xdp = link.get_attr("IFLA_XDP")
                kind = link.get_nested("IFLA_LINKINFO", "IFLA_INFO_KIND")
                program = xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None
                slots[name] = XdpSlot(program, kind == "veth")
        return slots

    return netns.run(look)


def find_interfaces(names: tuple[str, ...], netns: Netns) -> dict[str, int]:
    """Interface name -> ifindex, in the namespace.

    Raises:
        UsageError: no such interface, or one without an Ethernet header.
    """

    def look() -> dict[str, int]:
        found = {}
        for name in names:
            try:
                found[name] = socket.if_nametoindex(name)
                require_ethernet(name)
            except OSError as error:
                present = ", ".join(known for _, known in socket.if_nameindex())
                where = f" in network namespace {netns.name}" if netns.name else ""
                raise UsageError(
                    f"no network interface {name!r}{where}: it has {present}"
                ) from error
        return found

    return netns.run(look)


def require_ethernet(name: str) -> None:
    """Raises UsageError for an interface of the calling thread's namespace without such a header.

    Raises:
        OSError: there is no such interface.
    """
    siocgifhwaddr = 0x8927
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, siocgifhwaddr, struct.pack("256s", name.encode()[:15]))
    kind = struct.unpack_from("H", answer, 16)[0]
    if kind not in _ETHERNET_KINDS:
        raise UsageError(
            f"interface {name} has no Ethernet header (its kind is {kind}, as of a tunnel), which "
            "otelbpf needs: give the interface below it"
        )

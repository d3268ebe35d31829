# SPDX-License-Identifier: Apache-2.0
"""The network interfaces that are measured."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import socket
import struct
from enum import StrEnum

from otelbpf.errors import UsageError
from otelbpf.host.netns import Netns

#: The kinds of interface (ARPHRD_*) whose packets start with an Ethernet header.
_ETHERNET_KINDS = {1, 772}  # Ethernet, loopback
# linux/sockios.h, and struct ethtool_drvinfo with the command that fills it, linux/ethtool.h
_SIOCGIFHWADDR = 0x8927
_SIOCETHTOOL = 0x8946
_ETHTOOL_GDRVINFO = 3
_DRVINFO = struct.Struct("I32s160x")


class Xdp(StrEnum):
    """On which interfaces XDP is wanted."""

    #: Those whose driver has it, whose slot is free, and which it does not slow down.
    AUTO = "auto"
    #: All of them; where the driver has none, the kernel's generic one.
    ON = "on"
    OFF = "off"


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
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        answer = fcntl.ioctl(probe, _SIOCGIFHWADDR, struct.pack("256s", name.encode()[:15]))
    kind = struct.unpack_from("H", answer, 16)[0]
    if kind not in _ETHERNET_KINDS:
        raise UsageError(
            f"interface {name} has no Ethernet header (its kind is {kind}, as of a tunnel), which "
            "otelbpf needs: give the interface below it"
        )


def is_veth(name: str) -> bool:
    """Is it one end of a pair of virtual interfaces, in the calling thread's namespace?

    Raises:
        OSError: there is no such interface.
    """
    told = ctypes.create_string_buffer(_DRVINFO.pack(_ETHTOOL_GDRVINFO, b""), _DRVINFO.size)
    asked = struct.pack("16sP16x", name.encode()[:15], ctypes.addressof(told))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            fcntl.ioctl(probe, _SIOCETHTOOL, asked)
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:
                raise
            return False  # it has no driver that would say what it is, as a veth's does
    driver: bytes = _DRVINFO.unpack(told)[1]
    return driver.rstrip(b"\0") == b"veth"

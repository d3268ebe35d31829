# SPDX-License-Identifier: Apache-2.0
"""Which of the machine's addresses a client has reached, where its server does not say.

The kernel is asked of each address whether a measured connection has it: one client's port may be
connected to two of them. An address that is on no interface itself (127.0.0.2) is not asked about.
"""

from __future__ import annotations

import ctypes
import socket
import struct
from time import monotonic

from otelbpf_plugin import marker
from otelbpf_plugin.connection import ANY_ADDRESS, IPV4, Ends
from otelbpf_plugin.log import warn_once

#: How long a list of addresses is good for.
LISTED_S = 1.0
#: To ask for more than these would cost a request more than it is worth.
MOST_ADDRESSES = 16

_libc = ctypes.CDLL(None, use_errno=True)


class _Listed(ctypes.Structure):
    """struct ifaddrs."""


_Listed._fields_ = [
    ("next", ctypes.POINTER(_Listed)), ("name", ctypes.c_char_p), ("flags", ctypes.c_uint),
    ("address", ctypes.c_void_p), ("netmask", ctypes.c_void_p), ("broadcast", ctypes.c_void_p),
    ("data", ctypes.c_void_p),
]  # fmt: skip

# Until when, by time.monotonic(), and which.
_kept: tuple[float, frozenset[bytes]] = (0.0, frozenset())


def reached_by(ends: Ends) -> bytes:
    """The local address of a connection of which all else is known.

    Returns:
        16 bytes; ANY_ADDRESS: it is not known for sure, and why is logged once.
    """
    is_ipv4 = ends.peer.startswith(IPV4)
    candidates = [each for each in _addresses() if each.startswith(IPV4) == is_ipv4]
    if len(candidates) > MOST_ADDRESSES:
        _warn(f"this machine has more than {MOST_ADDRESSES}")
        return ANY_ADDRESS
    found = [
        each for each in candidates
        if marker.knows(ends.peer, each, ends.peer_port, ends.local_port)
    ]  # fmt: skip
    if len(found) > 1:
        _warn("a client uses the same port for two of them")
    return found[0] if len(found) == 1 else ANY_ADDRESS


def _warn(why: str) -> None:
    warn_once(
        "does not join requests with otelbpf's spans: the server listens on all addresses, does "
        f"not say which one a client has reached, and {why}; have it listen on one"
    )


def _addresses() -> frozenset[bytes]:
    """This machine's, in this network namespace; IPv4 as IPv4-mapped IPv6."""
    global _kept
    until, addresses = _kept
    if monotonic() >= until:
        addresses = frozenset(_listed())
        _kept = (monotonic() + LISTED_S, addresses)
    return addresses


def _listed() -> list[bytes]:
    first = ctypes.POINTER(_Listed)()
    if _libc.getifaddrs(ctypes.byref(first)) != 0:
        raise OSError(ctypes.get_errno(), "getifaddrs() failed")
    addresses = []
    try:
        each = first
        while each:
            if each.contents.address:
                (family,) = struct.unpack("=H", ctypes.string_at(each.contents.address, 2))
                if family == socket.AF_INET:
                    addresses.append(IPV4 + ctypes.string_at(each.contents.address + 4, 4))
                elif family == socket.AF_INET6:
                    addresses.append(ctypes.string_at(each.contents.address + 8, 16))
            each = each.contents.next
    finally:
        _libc.freeifaddrs(first)
    return addresses

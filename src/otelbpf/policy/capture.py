# SPDX-License-Identifier: Apache-2.0
"""What is told of a request that may be somebody's own business."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# Of an IPv6 address; IPv4 ones are written as such, with 96 bits before them.
_MAPPED = bytes(10) + b"\xff\xff"
_BITS, _MAPPED_BITS = 48, 96 + 24


class Clients(StrEnum):
    """How much of the addresses of those who ask is told."""

    WHOLE = "whole"
    PREFIX = "prefix"
    NONE = "none"


@dataclass(frozen=True)
class Capture:
    """What spans say of a request's path and query, and of who asks.

    Attributes:
        path: the whole path; else its route alone.
        query: the part of the target after `?`.
        user_agent: as the client names itself.
        clients: their addresses. Their ports are told with whole addresses only, as a port tells
            apart who shares a prefix.
    """

    path: bool = True
    query: bool = False
    user_agent: bool = True
    clients: Clients = Clients.WHOLE


def prefix_of(address: bytes) -> bytes:
    """The first address of the network in which it is: /24 of IPv4, /48 of IPv6.

    Args:
        address: 16 bytes; IPv4-mapped ones are IPv4.
    """
    bits = _MAPPED_BITS if address.startswith(_MAPPED) else _BITS
    return address[: bits // 8].ljust(len(address), b"\0")

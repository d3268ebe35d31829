# SPDX-License-Identifier: Apache-2.0
"""Which proxies are believed when they say for whom they speak."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

from otelbpf.errors import UsageError

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# Before an IPv4 address that is written as an IPv6 one.
_MAPPED_BITS = 96
_MAPPED = bytes(10) + b"\xff\xff"


class Header(StrEnum):
    """In which proxies say for whom they have forwarded a request."""

    X_FORWARDED_FOR = "x-forwarded-for"
    FORWARDED = "forwarded"


@dataclass(frozen=True)
class Forwarding:
    """Who is believed that says in a request's header for whom it was forwarded.

    Attributes:
        networks: of the proxies; none: nobody is.
        header: in which they say it.
    """

    networks: tuple[Network, ...] = ()
    header: Header = Header.X_FORWARDED_FOR

    def __bool__(self) -> bool:
        return bool(self.networks)


def network(text: str) -> Network:
    """An address, or a network as in 10.0.0.0/8.

    Raises:
        UsageError: it is none.
    """
    try:
        found = ipaddress.ip_network(text, strict=False)
        address = ipaddress.ip_interface(text).ip
    except ValueError:
        found = None
    if found is None or "%" in text:  # a scope, which is of this machine alone
        raise UsageError(
            f"{text!r} is no address and no network: write 192.0.2.7, 10.0.0.0/8 or fd00::/8"
        )
    if address != found.network_address:
        raise UsageError(
            f"{text!r} is no network: {address} has bits beyond its prefix; write {found}, or "
            f"{address} for that address alone"
        )
    return found


def packed(of: Network) -> tuple[bytes, bytes]:
    """Its address and its mask, 16 bytes each, IPv4 as IPv4-mapped IPv6."""
    address, mask = of.network_address.packed, of.netmask.packed
    if of.version == 4:
        return _MAPPED + address, b"\xff" * (_MAPPED_BITS // 8) + mask
    return address, mask

# SPDX-License-Identifier: Apache-2.0
"""Whom the measured requests are sent to: hosts and ports, found out once, at the start."""

from __future__ import annotations

import functools
import ipaddress
import socket
from dataclasses import dataclass

from otelbpf.errors import UsageError
from otelbpf.host.netns import Netns
from otelbpf.kernel.settings import UPSTREAMS_MOST


@dataclass(frozen=True)
class Upstreams:
    """What a connection's other side is, if its requests are measured as a client's.

    Attributes:
        endpoints: (16 bytes of address, IPv4 as IPv4-mapped IPv6; port).
        ports: at whatever address.
    """

    endpoints: tuple[tuple[bytes, int], ...] = ()
    ports: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.endpoints or self.ports)


def resolve(hosts: tuple[tuple[str, int], ...], ports: tuple[int, ...], netns: Netns) -> Upstreams:
    """Looks up the hosts' names, in the measured namespace.

    Args:
        hosts: (name or address, port).
        ports: at whatever address.
    Raises:
        UsageError: a name means nothing, or they are too many.
    """
    endpoints = dict.fromkeys(
        (address, port)
        for host, port in hosts
        for address in netns.run(functools.partial(_addresses, host))
    )
    if len(endpoints) > UPSTREAMS_MOST:
        raise UsageError(
            f"the upstreams have {len(endpoints)} addresses: there is room for {UPSTREAMS_MOST}; "
            "give --client-port for whatever has a port"
        )
    return Upstreams(tuple(endpoints), ports)


def _addresses(host: str) -> tuple[bytes, ...]:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name of a host"
        raise UsageError(
            f"cannot find the address of the upstream {host!r}: {reason}; give its IP address, or "
            "--client-port for whatever has that port"
        ) from error
    texts = dict.fromkeys(str(address[0]).partition("%")[0] for *_, address in found)
    return tuple(_packed(text) for text in texts)


def _packed(text: str) -> bytes:
    address = ipaddress.ip_address(text)
    return address.packed if address.version == 6 else bytes(10) + b"\xff\xff" + address.packed

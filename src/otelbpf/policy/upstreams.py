# SPDX-License-Identifier: Apache-2.0
"""Whom the measured requests are sent to: hosts and ports, found out once, at the start."""

from __future__ import annotations

import functools
import ipaddress
import socket
from collections.abc import Iterable
from dataclasses import dataclass

from otelbpf.errors import UsageError
from otelbpf.host.netns import Netns


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

    def macros(self) -> dict[str, object]:
        """What bpf/ knows of them: macro -> C. `a` is the address, two words in memory's order."""
        ports = dict.fromkeys((*self.ports, *(port for _, port in self.endpoints)))
        of_endpoints = (
            f"((p)=={port}&&(a)[0]=={int.from_bytes(address[:8], 'little')}ull"
            f"&&(a)[1]=={int.from_bytes(address[8:], 'little')}ull)"
            for address, port in dict.fromkeys(self.endpoints)
        )
        of_ports = (f"(p)=={port}" for port in dict.fromkeys(self.ports))
        return {
            "CLIENTS": int(bool(self)),
            "IS_UPSTREAM_PORT(p)": any_of(f"(p)=={port}" for port in ports),
            "IS_UPSTREAM(p,a)": any_of((*of_ports, *of_endpoints)),
        }


def any_of(conditions: Iterable[str]) -> str:
    """C for: one of these holds."""
    return "(" + ("||".join(conditions) or "0") + ")"


def resolve(hosts: tuple[tuple[str, int], ...], ports: tuple[int, ...], netns: Netns) -> Upstreams:
    """Looks up the hosts' names, in the measured namespace.

    Args:
        hosts: (name or address, port).
        ports: at whatever address.
    Raises:
        UsageError: a name means nothing.
    """
    return Upstreams(
        tuple(
            (address, port)
            for host, port in hosts
            for address in netns.run(functools.partial(_addresses, host))
        ),
        ports,
    )


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

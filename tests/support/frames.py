# SPDX-License-Identifier: Apache-2.0
"""Made-up frames: TCP segments, and all that is around them."""

from __future__ import annotations

import functools
import ipaddress
import struct
from dataclasses import dataclass, replace

#: The measured server's, unless a test has another.
PORT = 8080

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP, HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 6, 0, 43, 44, 51, 60
_IPV4, _IPV6 = 0x0800, 0x86DD


@functools.cache
def packed(address: str) -> bytes:
    """An address as it is in a packet."""
    return ipaddress.ip_address(address).packed


@dataclass(frozen=True)
class Frame:
    """A TCP segment from a client to the measured server, and all that is around it.

    Attributes:
        vlans: tags, outermost first: (ethertype, vlan).
        options: IPv4 options, padded to four bytes.
        extensions: IPv6 extension headers: (protocol, bytes without its first, the next
            header's number).
        outbound: from the server to the client instead; the ports and addresses stay
            those of the client and the server.
    """

    payload: bytes = b""
    seq: int = 1000
    ack_seq: int = 5000
    flags: int = ACK | PSH
    client: str = "192.0.2.1"
    server: str = "192.0.2.2"
    client_port: int = 40_000
    server_port: int = PORT
    vlans: tuple[tuple[int, int], ...] = ()
    options: bytes = b""
    extensions: tuple[tuple[int, bytes], ...] = ()
    fragment: int = 0x4000
    tcp_options: bytes = b""
    outbound: bool = False

    def turned(self, **changes: object) -> Frame:
        """One the other way, on the same connection."""
        return replace(self, outbound=not self.outbound, **changes)

    def __bytes__(self) -> bytes:
        addresses = [packed(a) for a in (self.client, self.server)]
        ports = [self.client_port, self.server_port]
        if self.outbound:
            addresses.reverse()
            ports.reverse()
        offset = (20 + len(self.tcp_options)) // 4 << 12
        tcp = struct.pack(
            "!HHIIHHHH", *ports, self.seq % 2**32, self.ack_seq % 2**32,
            offset | self.flags, 65_535, 0, 0,
        )  # fmt: skip
        tcp += self.tcp_options + self.payload
        if len(addresses[0]) == 4:
            kind = _IPV4
            header = struct.pack(
                "!BBHHHBBH", 0x40 | (20 + len(self.options)) // 4, 0,
                20 + len(self.options) + len(tcp), 1, self.fragment, 64, TCP, 0,
            )  # fmt: skip
            packet = header + b"".join(addresses) + self.options + tcp
        else:
            kind = _IPV6
            first, middle = self._extended()
            header = struct.pack("!IHBB", 0x60000000, len(middle) + len(tcp), first, 64)
            packet = header + b"".join(addresses) + middle + tcp
        for ethertype, vlan in reversed(self.vlans):
            packet = struct.pack("!HH", vlan, kind) + packet
            kind = ethertype
        return bytes.fromhex("020000000002020000000001") + struct.pack("!H", kind) + packet

    def _extended(self) -> tuple[int, bytes]:
        """The number of the first header after IPv6's own, and all of them before TCP's."""
        following, chain = TCP, b""
        for protocol, rest in reversed(self.extensions):
            chain = bytes([following]) + rest + chain
            following = protocol
        return following, chain

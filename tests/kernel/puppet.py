# SPDX-License-Identifier: Apache-2.0
"""A client, or a server, whose segments a test sends one by one: no kernel answers in its place."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace
from typing import Self

from frames import fresh_port
from lab import CLIENT_INTERFACE, CLIENT_IPV4, INTERFACE, PORT, SERVER_IPV4, Lab
from support.commands import run
from support.frames import ACK, RST, SYN, Frame
from support.waiting import DEADLINE_S

from otelbpf.host.netns import Netns

#: On the lab's network, and of neither side.
ADDRESS = "198.18.0.9"
_ETH_P_IP = 0x0800
_ETHERNET, _IPV4 = 14, 20


def _mac(netns: Netns, interface: str) -> str:
    return json.loads(run("ip", "-n", netns.name, "-j", "link", "show", "dev", interface))[0][
        "address"
    ]


def _checksum(data: bytes) -> bytes:
    data += bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


class _End:
    """Beside one side of the lab, an end of connections to the other one.

    Args:
        frame: what all its segments have in common.
    """

    def __init__(self, ours: tuple[Netns, str], theirs: tuple[Netns, str], frame: Frame) -> None:
        self._frame = frame
        self._macs = bytes.fromhex((_mac(*theirs) + _mac(*ours)).replace(":", ""))
        run("ip", "-n", theirs[0].name, "neigh", "replace", ADDRESS, "lladdr", _mac(*ours),
            "nud", "permanent", "dev", theirs[1])  # fmt: skip
        self._wire = ours[0].run(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        )
        self._wire.bind((ours[1], _ETH_P_IP))
        self._wire.settimeout(DEADLINE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()

    def send(
        self, flags: int, seq: int, ack_seq: int = 0, payload: bytes = b"", *, wrong: bool = False
    ) -> None:
        """A segment leaves for the other side.

        Args:
            wrong: its checksum is; no TCP takes it.
        """
        frame = bytearray(
            bytes(replace(self._frame, payload=payload, seq=seq, ack_seq=ack_seq, flags=flags))
        )
        frame[:12] = self._macs
        ip, tcp = frame[_ETHERNET : _ETHERNET + _IPV4], frame[_ETHERNET + _IPV4 :]
        ip[10:12] = _checksum(ip)
        tcp[16:18] = _checksum(ip[12:20] + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        if wrong:
            tcp[16] ^= 0xFF
        self._wire.send(frame[:_ETHERNET] + ip + tcp)

    def receive(self, flags: int) -> int:
        """Waits for a segment with just these flags; gives its sequence number."""
        ports = [self._frame.client_port, self._frame.server_port]
        if not self._frame.outbound:
            ports.reverse()
        while True:
            tcp = self._wire.recv(2048)[_ETHERNET + _IPV4 :]
            *found, seq, _, _, found_flags = struct.unpack("!HHIIBB", tcp[:14])
            if (found, found_flags) == (ports, flags):
                return seq

    def leave(self, seq: int, ack_seq: int) -> None:
        """Resets what was established."""
        self.send(RST | ACK, seq, ack_seq)


class Puppet(_End):
    """A client on a port of its own."""

    def __init__(self, lab: Lab, server_port: int = PORT) -> None:
        self.port = fresh_port()
        super().__init__(
            (lab.client_netns, CLIENT_INTERFACE), (lab.server_netns, INTERFACE),
            Frame(client=ADDRESS, server=SERVER_IPV4, client_port=self.port,
                  server_port=server_port),
        )  # fmt: skip

    def ask(self, seq: int) -> int:
        """A SYN that is answered; gives the answer's sequence number."""
        self.send(SYN, seq)
        return self.receive(SYN | ACK)


class ServerPuppet(_End):
    """A server, of the one client that it accepts."""

    def __init__(self, lab: Lab, port: int) -> None:
        super().__init__(
            (lab.server_netns, INTERFACE), (lab.client_netns, CLIENT_INTERFACE),
            Frame(client=CLIENT_IPV4, server=ADDRESS, server_port=port, outbound=True),
        )  # fmt: skip

    def accept(self, client: socket.socket, seq: int) -> int:
        """Has this socket connect; gives its SYN's sequence number."""
        client.bind((CLIENT_IPV4, 0))
        self._frame = replace(self._frame, client_port=client.getsockname()[1])
        client.setblocking(False)
        client.connect_ex((ADDRESS, self._frame.server_port))
        theirs = self.receive(SYN)
        self.send(SYN | ACK, seq, theirs + 1)
        self.receive(ACK)
        client.setblocking(True)
        return theirs

# SPDX-License-Identifier: Apache-2.0
"""A client whose segments a test sends one by one: no kernel answers in its place."""

from __future__ import annotations

import json
import socket
import struct

from frames import fresh_port
from lab import CLIENT_INTERFACE, INTERFACE, PORT, SERVER_IPV4, Lab
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


class Puppet:
    """A client on a port of its own."""

    def __init__(self, lab: Lab, server_port: int = PORT) -> None:
        theirs, ours = _mac(lab.server_netns, INTERFACE), _mac(lab.client_netns, CLIENT_INTERFACE)
        run("ip", "-n", lab.server_netns.name, "neigh", "replace", ADDRESS, "lladdr", ours,
            "nud", "permanent", "dev", INTERFACE)  # fmt: skip
        self._macs = bytes.fromhex((theirs + ours).replace(":", ""))
        self.port = fresh_port()
        self._server_port = server_port
        self._wire = lab.client_netns.run(
            lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_IP))
        )
        self._wire.bind((CLIENT_INTERFACE, _ETH_P_IP))
        self._wire.settimeout(DEADLINE_S)

    def __enter__(self) -> Puppet:
        return self

    def __exit__(self, *_: object) -> None:
        self._wire.close()

    def send(
        self, flags: int, seq: int, ack_seq: int = 0, payload: bytes = b"", *, wrong: bool = False
    ) -> None:
        """A segment leaves for the server.

        Args:
            wrong: its checksum is; no TCP takes it.
        """
        frame = bytearray(bytes(Frame(
            payload, seq, ack_seq, flags, client=ADDRESS, server=SERVER_IPV4,
            client_port=self.port, server_port=self._server_port,
        )))  # fmt: skip
        frame[:12] = self._macs
        ip, tcp = frame[_ETHERNET : _ETHERNET + _IPV4], frame[_ETHERNET + _IPV4 :]
        ip[10:12] = _checksum(ip)
        tcp[16:18] = _checksum(ip[12:20] + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp)) + tcp)
        if wrong:
            tcp[16] ^= 0xFF
        self._wire.send(frame[:_ETHERNET] + ip + tcp)

    def receive(self, flags: int) -> int:
        """Waits for a segment with just these flags; gives its sequence number."""
        while True:
            tcp = self._wire.recv(2048)[_ETHERNET + _IPV4 :]
            source, destination, seq, _, _, found = struct.unpack("!HHIIBB", tcp[:14])
            if (source, destination, found) == (self._server_port, self.port, flags):
                return seq

    def ask(self, seq: int) -> int:
        """A SYN that is answered; gives the answer's sequence number."""
        self.send(SYN, seq)
        return self.receive(SYN | ACK)

    def leave(self, seq: int, ack_seq: int) -> None:
        """Resets what was established."""
        self.send(RST | ACK, seq, ack_seq)

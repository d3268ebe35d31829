# SPDX-License-Identifier: Apache-2.0
"""Made-up frames, handed to the programs by the kernel's own test run instead of by a card."""

from __future__ import annotations

import ctypes
import ipaddress
import itertools
import struct
from dataclasses import dataclass, replace

from lab import PORT
from meter import Meter

from otelbpf.kernel import libbpf

XDP_PASS = 2
TC_NEXT = 0xFFFFFFFF  # -1

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
TCP, HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 6, 0, 43, 44, 51, 60
_IPV4, _IPV6 = 0x0800, 0x86DD
_LEAST = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}

# struct __sk_buff, uapi/linux/bpf.h.
_SK_BUFF, _SK_BUFF_IFINDEX = 192, 40

_ports = itertools.count(20_000)


def fresh_port() -> int:
    """A client's port that no other made-up connection has."""
    return next(_ports)


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
        addresses = [ipaddress.ip_address(a).packed for a in (self.client, self.server)]
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


def verdict(program_fd: int, frame: bytes, interface: int = 0) -> int:
    """What a program says to a frame.

    Args:
        interface: the index of the one that a program at TC is to see; 0: the loopback's.
    """
    opts = libbpf._TestRunOpts(sz=ctypes.sizeof(libbpf._TestRunOpts))
    if interface:
        context = bytearray(_SK_BUFF)
        struct.pack_into("I", context, _SK_BUFF_IFINDEX, interface)
        opts.ctx_in = ctypes.cast(ctypes.c_char_p(bytes(context)), ctypes.c_void_p)
        opts.ctx_size_in = _SK_BUFF
    opts.data_in = ctypes.cast(ctypes.c_char_p(frame), ctypes.c_void_p)
    opts.data_size_in = len(frame)
    libbpf.checked(libbpf.library().bpf_prog_test_run_opts(program_fd, ctypes.byref(opts)))
    return opts.retval


class Wire:
    """Hands frames to the programs as the hooks would, and checks that all of them pass.

    Args:
        interfaces: those that each frame passes at traffic control, by index, one after the other;
            0: the loopback.
    """

    def __init__(self, meter: Meter, *interfaces: int) -> None:
        self._programs = meter.programs
        self._netns = meter.netns
        self._interfaces = interfaces or (0,)

    def deliver(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame arrives: at XDP, then at TC ingress."""
        self.arrive(bytes(frame)[:length])
        self.take(bytes(frame)[:length])

    def arrive(self, frame: Frame | bytes) -> None:
        """A frame arrives at XDP only: several may, before TC sees the first."""
        self._run("xdp_arrival", XDP_PASS, bytes(frame))

    def take(self, frame: Frame | bytes) -> None:
        """A frame arrives at TC ingress."""
        self._run_tc("tc_ingress", bytes(frame))

    def emit(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame leaves."""
        self._run_tc("tc_egress", bytes(frame)[:length])

    def _run_tc(self, program: str, data: bytes) -> None:
        # The kernel makes no skb of a frame that says IP and has no whole IP header.
        if len(data) >= _LEAST.get(data[12:14], 0):
            for interface in self._interfaces:
                self._run(program, TC_NEXT, data, interface)

    def _run(self, program: str, expected: int, data: bytes, interface: int = 0) -> None:
        fd = self._programs.fd(program)
        if interface:
            said = self._netns.run(lambda: verdict(fd, data, interface))
        else:
            said = verdict(fd, data)
        assert said == expected


class UpstreamWire(Wire):
    """The same on the client's side: what the client sends leaves, and the answers arrive."""

    def deliver(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame of the client's leaves."""
        self._run_tc("tc_client_egress", bytes(frame)[:length])

    def emit(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """One of the upstream's arrives: at XDP, then at TC ingress."""
        self._run("xdp_arrival", XDP_PASS, bytes(frame)[:length])
        self._run_tc("tc_client_ingress", bytes(frame)[:length])

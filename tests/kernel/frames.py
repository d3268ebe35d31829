# SPDX-License-Identifier: Apache-2.0
"""Made-up frames, handed to the programs by the kernel's own test run instead of by a card."""

from __future__ import annotations

import ctypes
import itertools
import struct

import repair
from meter import Meter
from support.frames import Frame

from otelbpf.kernel import libbpf

XDP_PASS = 2
TC_NEXT = 0xFFFFFFFF  # -1

_LEAST = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}

# struct __sk_buff, uapi/linux/bpf.h.
_SK_BUFF, _SK_BUFF_IFINDEX = 192, 40

_ports = itertools.cycle(range(20_000, 65_536))


def fresh_port() -> int:
    """A client's port that no other connection has that was made up lately."""
    return next(_ports)


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

    Before the first one of a connection its socket is made, which never hears of them.

    Args:
        interfaces: those that each frame passes at traffic control, by index, one after the other;
            0: the loopback.
        sockets: False: no socket of this host has these connections.
    """

    _side = "server"

    def __init__(self, meter: Meter, *interfaces: int, sockets: bool = True) -> None:
        self._lab = meter.lab
        self._sockets = sockets
        self._known: set[tuple[str, int, str, int]] = set()
        self._programs = meter.programs
        self._netns = meter.netns
        self._interfaces = interfaces or (0,)

    def establish(self, frame: Frame) -> None:
        """The frame's connection is there: its next bytes are the frame's, either way."""
        ends = (frame.server, frame.server_port), (frame.client, frame.client_port)
        if not self._sockets or (*ends[0], *ends[1]) in self._known:
            return
        self._known.add((*ends[0], *ends[1]))
        next_bytes = frame.seq % 2**32, frame.ack_seq % 2**32
        if frame.outbound == (self._side == "server"):
            sends, receives = next_bytes
        else:
            receives, sends = next_bytes
        own, peer = ends if self._side == "server" else ends[::-1]
        repair.one_end(self._lab, self._side, own, peer, sends, receives)

    def deliver(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame arrives: at XDP, then at TC ingress."""
        self._meet(frame)
        self.arrive(bytes(frame)[:length])
        self.take(bytes(frame)[:length])

    def arrive(self, frame: Frame | bytes) -> None:
        """A frame arrives at XDP only: several may, before TC sees the first."""
        self._meet(frame)
        self._run("xdp_arrival", XDP_PASS, bytes(frame))

    def take(self, frame: Frame | bytes) -> None:
        """A frame arrives at TC ingress."""
        self._meet(frame)
        self._run_tc("tc_ingress", bytes(frame))

    def emit(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame leaves."""
        self._meet(frame)
        self._run_tc("tc_egress", bytes(frame)[:length])

    def _meet(self, frame: Frame | bytes) -> None:
        if isinstance(frame, Frame) and frame.payload:
            self.establish(frame)

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

    _side = "client"

    def deliver(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """A frame of the client's leaves."""
        self._meet(frame)
        self._run_tc("tc_client_egress", bytes(frame)[:length])

    def emit(self, frame: Frame | bytes, *, length: int | None = None) -> None:
        """One of the upstream's arrives: at XDP, then at TC ingress."""
        self._meet(frame)
        self._run("xdp_arrival", XDP_PASS, bytes(frame)[:length])
        self._run_tc("tc_client_ingress", bytes(frame)[:length])

# SPDX-License-Identifier: Apache-2.0
"""Made-up frames, handed to the programs by the kernel's own test run instead of by a card."""

from __future__ import annotations

import ctypes
import itertools
import struct

from meter import Meter
from support.frames import Frame

from otelbpf.kernel import libbpf

XDP_PASS = 2
TC_NEXT = 0xFFFFFFFF  # -1

_LEAST = {b"\x08\x00": 14 + 20, b"\x86\xdd": 14 + 40}

# struct __sk_buff, uapi/linux/bpf.h.
_SK_BUFF, _SK_BUFF_IFINDEX = 192, 40

_ports = itertools.count(20_000)


def fresh_port() -> int:
    """A client's port that no other made-up connection has."""
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

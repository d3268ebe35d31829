# SPDX-License-Identifier: Apache-2.0
"""All of otelbpf's programs on one interface."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass

from otelbpf.errors import KernelError
from otelbpf.host.interfaces import Xdp
from otelbpf.host.netns import Netns
from otelbpf.kernel import libbpf
from otelbpf.kernel.hooks import Choice
from otelbpf.kernel.lines import Line
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.tcx import Tcx, TcxLine
from otelbpf.kernel.xdp_slots import VETH_AND_XDP, look_at_xdp

#: Ingress comes after all else: a request is first seen when every later hook is there to stamp it.
DIRECTIONS = ("egress", "ingress")


@dataclass(frozen=True)
class Ways:
    """How interfaces are attached to.

    Attributes:
        choices: what each hook got, by its name.
        netns: that the interfaces are in.
        tcx: what its lines have in common; None: there are to be none.
    """

    programs: Programs
    choices: Mapping[str, Choice]
    netns: Netns
    xdp: Xdp
    tcx: Tcx | None


class OnInterface:
    """The programs at traffic control, attached from when it is made until it is closed.

    Args:
        name: of the interface, as it was asked for.
    Attributes:
        lines: at traffic control, by direction.
        called: what the interface is called now.
        attached_ktime_ns: since when it is measured, by CLOCK_MONOTONIC.
        description: for people: what was attached where.
        left_alone: for people: why there is no `nic` stamp; empty if there is one.
    Raises:
        KernelError: the kernel refused.
    """

    def __init__(self, ways: Ways, name: str, ifindex: int) -> None:
        self.name = self.called = name
        self.ifindex = ifindex
        self.lines: dict[str, Line] = {}
        self.description: list[str] = []
        self.left_alone = ""
        self._ways = ways
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            for direction in DIRECTIONS:
                fds = ways.programs.tc_fds(direction).values()
                chosen = ways.choices[direction].chosen
                assert chosen is not None
                way = chosen.target
                line = self._line(way, list(fds), direction)
                stack.callback(line.close)
                self.lines[direction] = line
                self.description.append(f"{way} {direction} on {name}")
            self._stack = stack.pop_all()
        self.attached_ktime_ns = time.monotonic_ns()

    def _line(self, way: str, fds: list[int], direction: str) -> Line:
        try:
            if way == "clsact":
                # Most kernels have links, and importing pyroute2 takes longer than attaching.
                from otelbpf.kernel.clsact import ClsactLine

                return ClsactLine(self._ways.netns, fds, direction, self.ifindex)
            tcx = self._ways.tcx
            assert tcx is not None
            return self._ways.netns.run(lambda: TcxLine(tcx, fds, direction, self.ifindex))
        except OSError as error:
            raise KernelError(
                f"cannot attach to TC {direction} of interface {self.name}: {error.strerror}"
            ) from error

    def attach_xdp(self, *, insist: bool) -> None:
        """Attaches to XDP as well, where that is asked for.

        Raises:
            KernelError: the kernel refused, and it was insisted upon.
        """
        if self._ways.choices["arrival"].chosen is None:
            return
        modes = {"native": libbpf.XDP_FLAGS_DRV_MODE}
        if self._ways.xdp is Xdp.ON:
            modes["generic"] = libbpf.XDP_FLAGS_SKB_MODE
        elif look_at_xdp(self.ifindex, self._ways.netns).is_veth:
            self._leave_alone(VETH_AND_XDP)
            return
        fd = self._ways.programs.fd("xdp_arrival")
        refusals = []
        for mode, flags in modes.items():
            try:
                link = self._ways.netns.run(
                    functools.partial(libbpf.link_create, fd, self.ifindex, libbpf.BPF_XDP, flags)
                )
            except OSError as error:
                if error.errno in (errno.EBUSY, errno.EEXIST):
                    refusals = ["it has an XDP program already, and otelbpf replaces nobody's"]
                    break
                refusals.append(f"{mode}: {error.strerror}")
                continue
            self._stack.callback(os.close, link)
            self.description.append(f"XDP {mode} on {self.name}")
            return
        if insist:
            raise KernelError(
                f"cannot attach XDP to interface {self.name} ({'; '.join(refusals)}): "
                f"`ip link show dev {self.name}` shows what is there; with `--xdp auto` the "
                "interface is measured without the nic stamp"
            )
        self._leave_alone("; ".join(refusals))

    def _leave_alone(self, reason: str) -> None:
        self.left_alone = f"nic, nic_last on {self.name}: {reason}; see --xdp"

    def is_alive(self) -> bool:
        """Is all still there, as far as that can be told outside of its namespace?"""
        return all(line.is_alive() for line in self.lines.values())

    def close(self) -> None:
        """Detaches everything; what is gone already is gone."""
        self._stack.close()

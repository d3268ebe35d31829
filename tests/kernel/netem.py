# SPDX-License-Identifier: Apache-2.0
"""Networks that delay, lose, reorder and duplicate packets: tc's netem, on either side's veth."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from lab import CLIENT_INTERFACE, INTERFACE, Lab
from support.commands import run
from support.namespaces import namespaces

from otelbpf.host.netns import Netns

_INTERFACES = {"server": INTERFACE, "client": CLIENT_INTERFACE}
# More packets than any test has on the way, so that none is lost for want of room.
_LIMIT = ("limit", "100000")
_DELAYING = "ifb-netem"


def available() -> bool:
    """Does this kernel have netem? Looked for by using it."""
    try:
        with namespaces("netem") as (name,):
            run("tc", "-n", name, "qdisc", "add", "dev", "lo", "root", "netem", "delay", "1ms")
    except (RuntimeError, FileNotFoundError):
        return False
    return True


def _tc(lab: Lab, side: str, *arguments: str) -> None:
    netns = lab.server_netns if side == "server" else lab.client_netns
    run("tc", "-n", netns.name, *arguments)


@contextlib.contextmanager
def packets_of_one_segment(lab: Lab) -> Iterator[None]:
    """New connections hand over segment by segment, where they would join up to 64 KiB."""
    with contextlib.ExitStack() as stack:
        for netns, interface in (
            (lab.server_netns, INTERFACE),
            (lab.client_netns, CLIENT_INTERFACE),
        ):
            command = ("ip", "-n", netns.name, "link", "set", interface, "gso_max_segs")
            run(*command, "1")
            stack.callback(run, *command, "65535")
        yield


@contextlib.contextmanager
def what_is_sent(lab: Lab, side: str, *impairment: str) -> Iterator[None]:
    """Impairs all that one side sends, after its TC egress hook."""
    interface = _INTERFACES[side]
    _tc(lab, side, "qdisc", "add", "dev", interface, "root", "netem", *_LIMIT, *impairment)
    try:
        yield
    finally:
        _tc(lab, side, "qdisc", "del", "dev", interface, "root")


@contextlib.contextmanager
def long_packets_sent(lab: Lab, side: str, *impairment: str) -> Iterator[None]:
    """The same, but only for IPv4 packets of 128 bytes and more: bare acknowledgements pass."""
    interface = _INTERFACES[side]
    # All of it into the third band, but for what the filter puts into the first.
    _tc(
        lab, side, "qdisc", "add", "dev", interface, "root", "handle", "1:", "prio",
        "priomap", *["2"] * 16,
    )  # fmt: skip
    try:
        _tc(
            lab, side, "qdisc", "add", "dev", interface, "parent", "1:3", "netem",
            *_LIMIT, *impairment,
        )  # fmt: skip
        _tc(
            lab, side, "filter", "add", "dev", interface, "parent", "1:", "protocol", "ip",
            "u32", "match", "u16", "0", "0xff80", "at", "2", "flowid", "1:1",
        )  # fmt: skip
        yield
    finally:
        _tc(lab, side, "qdisc", "del", "dev", interface, "root")


@contextlib.contextmanager
def what_the_server_receives(lab: Lab, *impairment: str) -> Iterator[None]:
    """Impairs what the server receives, between its TC ingress hook and TCP, by way of an ifb."""
    name = lab.server_netns.name
    ingress = ("dev", INTERFACE, "ingress", "pref", "60000")
    with contextlib.ExitStack() as stack:
        run("ip", "-n", name, "link", "add", _DELAYING, "type", "ifb")
        stack.callback(run, "ip", "-n", name, "link", "del", _DELAYING)
        run("ip", "-n", name, "link", "set", _DELAYING, "up")
        _tc(lab, "server", "qdisc", "add", "dev", _DELAYING, "root", "netem", *_LIMIT, *impairment)
        with contextlib.suppress(RuntimeError):  # the programs' own filters may have made it
            _tc(lab, "server", "qdisc", "add", "dev", INTERFACE, "clsact")
            stack.callback(_tc, lab, "server", "qdisc", "del", "dev", INTERFACE, "clsact")
        _tc(
            lab, "server", "filter", "add", *ingress, "protocol", "all", "matchall",
            "action", "mirred", "egress", "redirect", "dev", _DELAYING,
        )  # fmt: skip
        stack.callback(_tc, lab, "server", "filter", "del", *ingress)
        yield


def tcp_statistics(netns: Netns) -> dict[str, int]:
    """What the kernel has counted for TCP in a namespace: TcpExt of /proc/net/netstat."""
    # Of this thread: the process's own is that of its first thread.
    text = netns.run(lambda: Path("/proc/thread-self/net/netstat").read_text())
    names, values = (line.split()[1:] for line in text.splitlines() if line.startswith("TcpExt:"))
    return dict(zip(names, map(int, values), strict=True))

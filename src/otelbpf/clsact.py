# SPDX-License-Identifier: Apache-2.0
"""TC filters on a clsact qdisc, for kernels that have no tcx links.

The kernel keeps such a filter when its process is killed. So each bears the
process's id in its name, and what a dead one left is removed at the next start.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from otelbpf.errors import KernelError
from otelbpf.netns import Netns
from otelbpf.processes import start_time

_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_NAME_PREFIX = "otelbpf-"
_PRIORITY = 49_152
_ETH_P_ALL = 3
_EEXIST = 17


def _name(pid: int) -> str:
    """otelbpf-PIDNS-PID-START: whose filter it is, for as long as the machine is up."""
    pid_namespace = os.stat("/proc/self/ns/pid").st_ino
    return f"{_NAME_PREFIX}{pid_namespace}-{pid}-{start_time(pid)}"


def _is_left_over(name: str) -> bool:
    """Was it a process of this pid namespace, and has it ended? Others cannot be told."""
    parts = name.removeprefix(_NAME_PREFIX).split("-")
    if not name.startswith(_NAME_PREFIX) or len(parts) != 3 or not parts[1].isdigit():
        return False
    if parts[0] != str(os.stat("/proc/self/ns/pid").st_ino):
        return False
    return _name(int(parts[1])) != name


def _filters(route: IPRoute, ifindex: int, parent: int) -> Iterator[tuple[str, int, int]]:
    """(name, handle, priority) of the BPF filters in one direction."""
    for message in route.get_filters(index=ifindex, parent=parent):
        options = message.get_attr("TCA_OPTIONS")
        name = options.get_attr("TCA_BPF_NAME") if hasattr(options, "get_attr") else None
        if name is not None and message["handle"]:
            yield name, message["handle"], message["info"] >> 16


def _delete(route: IPRoute, ifindex: int, parent: int, handle: int, priority: int) -> None:
    route.tc("del-filter", "bpf", ifindex, handle, parent=parent, prio=priority,
             protocol=_ETH_P_ALL)


def _attach(ifindex: int, program_fd: int, direction: str) -> bool:
    """Adds the filter; was the qdisc added for it too?"""
    added = True
    parent = _PARENTS[direction]
    with IPRoute() as route:
        try:
            route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            added = False
            if error.code != _EEXIST:
                raise KernelError(
                    f"cannot add a clsact qdisc to interface {ifindex}: {error}; it takes "
                    "a kernel with CONFIG_NET_CLS_ACT and CONFIG_NET_SCH_INGRESS"
                ) from error
        for name, handle, priority in list(_filters(route, ifindex, parent)):
            if _is_left_over(name):
                _delete(route, ifindex, parent, handle, priority)
        taken = {handle for _, handle, _ in _filters(route, ifindex, parent)}
        handle = next(number for number in range(1, 1 << 16) if number not in taken)
        try:
            route.tc("add-filter", "bpf", ifindex, handle, fd=program_fd, name=_name(os.getpid()),
                     parent=parent, prio=_PRIORITY, protocol=_ETH_P_ALL, direct_action=True)
        except NetlinkError as error:
            if added:
                route.tc("del", "clsact", ifindex)
            raise KernelError(
                f"cannot add a TC {direction} filter to interface {ifindex}: {error}"
            ) from error
    return added


def _detach(ifindex: int, direction: str, with_qdisc: bool) -> None:
    with IPRoute() as route, contextlib.suppress(NetlinkError):
        parent = _PARENTS[direction]
        for name, handle, priority in list(_filters(route, ifindex, parent)):
            if name == _name(os.getpid()):
                _delete(route, ifindex, parent, handle, priority)
        # Our own qdisc goes too, unless somebody else has come to use it.
        if with_qdisc and not any(
            route.get_filters(index=ifindex, parent=each) for each in _PARENTS.values()
        ):
            route.tc("del", "clsact", ifindex)


@contextlib.contextmanager
def attached(netns: Netns, ifindex: int, program_fd: int, direction: str) -> Iterator[None]:
    """A filter for the length of a `with` block.

    Args:
        netns: the interface's namespace.
        direction: "ingress" or "egress".
    Raises:
        KernelError: the kernel refused.
    """
    with_qdisc = netns.run(lambda: _attach(ifindex, program_fd, direction))
    try:
        yield
    finally:
        # A namespace that is gone has taken its filters along.
        with contextlib.suppress(KernelError):
            netns.run(lambda: _detach(ifindex, direction, with_qdisc))

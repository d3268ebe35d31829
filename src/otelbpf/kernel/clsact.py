# SPDX-License-Identifier: Apache-2.0
"""TC filters on a clsact qdisc, for kernels that have no tcx links.

The kernel keeps such a filter when its process is killed. So each bears the
process's id in its name, and what a dead one left is removed at the next start.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from otelbpf.errors import KernelError
from otelbpf.host.netns import Netns
from otelbpf.host.processes import start_time
from otelbpf.kernel.lines import Stranger

_PARENTS = {"ingress": 0xFFFFFFF2, "egress": 0xFFFFFFF3}
_NAME_PREFIX = "otelbpf-"
_PRIORITY = 49_152
_ETH_P_ALL = 3


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


@dataclass(frozen=True)
class _Filter:
    """A filter that packets may meet. Those of the least priority come first."""

    kind: str
    name: str
    handle: int
    priority: int

    def is_ours(self) -> bool:
        return self.name == _name(os.getpid())


@contextlib.contextmanager
def _route() -> Iterator[IPRoute]:
    """A socket to ask the kernel by, whose refusals are OSErrors."""
    try:
        with IPRoute() as route:
            yield route
    except NetlinkError as error:
        raise OSError(error.code, os.strerror(error.code)) from error


def _filters(route: IPRoute, ifindex: int, parent: int) -> list[_Filter]:
    """Those in one direction, in their order."""
    found = []
    for message in route.get_filters(index=ifindex, parent=parent):
        options = message.get_attr("TCA_OPTIONS")
        name = options.get_attr("TCA_BPF_NAME") if hasattr(options, "get_attr") else None
        priority = message["info"] >> 16
        # The kernel also tells of each priority's chain, by no handle.
        if message["handle"]:
            kind = message.get_attr("TCA_KIND")
            found.append(_Filter(kind, name or "", message["handle"], priority))
    return sorted(found, key=lambda each: each.priority)


def _delete(route: IPRoute, ifindex: int, parent: int, filter_: _Filter) -> None:
    route.tc(
        "del-filter",
        "bpf",
        ifindex,
        filter_.handle,
        parent=parent,
        prio=filter_.priority,
        protocol=_ETH_P_ALL,
    )


def _attach(ifindex: int, program_fd: int, direction: str) -> bool:
    """Adds the filter; was the qdisc added for it too?"""
    added = True
    parent = _PARENTS[direction]
    with _route() as route:
        try:
            route.tc("add", "clsact", ifindex)
        except NetlinkError as error:
            added = False
            if error.code != errno.EEXIST:
                raise KernelError(
                    f"cannot add a clsact qdisc to interface {ifindex}: {error}; it takes "
                    "a kernel with CONFIG_NET_CLS_ACT and CONFIG_NET_SCH_INGRESS"
                ) from error
        present = _filters(route, ifindex, parent)
        for filter_ in present:
            if _is_left_over(filter_.name):
                _delete(route, ifindex, parent, filter_)
        taken = {filter_.handle for filter_ in present}
        handle = next(number for number in range(1, 1 << 16) if number not in taken)
        try:
            route.tc(
                "add-filter",
                "bpf",
                ifindex,
                handle,
                fd=program_fd,
                name=_name(os.getpid()),
                parent=parent,
                prio=_PRIORITY,
                protocol=_ETH_P_ALL,
                direct_action=True,
            )
        except NetlinkError as error:
            if added:
                route.tc("del", "clsact", ifindex)
            raise KernelError(
                f"cannot add a TC {direction} filter to interface {ifindex}: {error}"
            ) from error
    return added


class ClsactLine:
    """Our filters in one direction of an interface, from when it is made until it is closed.

    Args:
        netns: the interface's namespace.
        fds: of the programs.
        direction: "ingress" or "egress".
    Raises:
        KernelError, OSError: the kernel refused.
    """

    can_move = False

    def __init__(self, netns: Netns, fds: Iterable[int], direction: str, ifindex: int) -> None:
        self._netns = netns
        self._ifindex = ifindex
        self._parent = _PARENTS[direction]
        self._added_qdisc = False
        self._count = 0
        try:
            for fd in fds:
                self._added_qdisc |= netns.run(functools.partial(_attach, ifindex, fd, direction))
                self._count += 1
        except (KernelError, OSError):
            self.close()
            raise

    def strangers(self) -> list[Stranger] | None:
        """See Line. Other agents of otelbpf are none: their programs hand on as ours do."""
        with _route() as route:
            present = _filters(route, self._ifindex, self._parent)
        if sum(filter_.is_ours() for filter_ in present) < self._count:
            return None
        return [
            Stranger(
                f"{filter_.kind} {filter_.name} {filter_.priority} {filter_.handle}",
                f"filter {filter_.name or filter_.kind} (preference {filter_.priority})",
            )
            for filter_ in present
            if filter_.priority < _PRIORITY and not filter_.name.startswith(_NAME_PREFIX)
        ]

    def go_first(self) -> None:
        """See Line: others' preferences are theirs, and ours is to be the last."""
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def is_alive(self) -> bool:
        """See Line. The kernel tells it in the namespace only."""
        return False

    def close(self) -> None:
        """See Line."""
        # A namespace that is gone has taken its filters along.
        with contextlib.suppress(KernelError):
            self._netns.run(self._detach)

    def _detach(self) -> None:
        with contextlib.suppress(OSError), _route() as route:
            for filter_ in _filters(route, self._ifindex, self._parent):
                if filter_.is_ours():
                    _delete(route, self._ifindex, self._parent, filter_)
            # Our own qdisc goes too, unless somebody else has come to use it.
            if self._added_qdisc and not any(
                route.get_filters(index=self._ifindex, parent=each) for each in _PARENTS.values()
            ):
                route.tc("del", "clsact", self._ifindex)

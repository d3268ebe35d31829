# SPDX-License-Identifier: Apache-2.0
"""Programs that are not otelbpf's, on the same interfaces; one of them loses packets."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Iterator

from lab import CLIENT_INTERFACE, INTERFACE, Lab
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from support.compiled import compiled

from otelbpf.host.interfaces import find_interfaces
from otelbpf.host.netns import Netns
from otelbpf.kernel import libbpf

_BPF_F_BEFORE = 1 << 3
_ETH_P_ALL = 3
_SOURCE = """
BPF_ARRAY(runs, u64, 1);
BPF_ARRAY(to_drop, s64, 1);
BPF_ARRAY(least_length, u64, 1);

int pass_xdp(struct xdp_md *xdp) { return 2; }

static __always_inline int note(void)
{
	int zero = 0;
	u64 *n = runs.lookup(&zero);

	if (n)
		__sync_fetch_and_add(n, 1);
	return -1;
}

int watch(struct __sk_buff *skb) { return note(); }

/* Decides: what comes after it in the line never sees the packet. */
int settle(struct __sk_buff *skb)
{
	note();
	return 0;
}

/* Interfaces talk on their own, too (neighbours, routers, multicast): nobody wants that lost. */
static __always_inline int is_tcp(struct __sk_buff *skb)
{
	u8 protocol = 0;

	if (skb->protocol == bpf_htons(0x0800))
		bpf_skb_load_bytes(skb, 14 + 9, &protocol, 1);
	else if (skb->protocol == bpf_htons(0x86dd))
		bpf_skb_load_bytes(skb, 14 + 6, &protocol, 1);
	return protocol == 6;
}

int lose(struct __sk_buff *skb)
{
	int zero = 0;
	u64 *least = least_length.lookup(&zero);
	s64 *left = to_drop.lookup(&zero);

	if (!left || !least || skb->len < *least || *left <= 0 || !is_tcp(skb))
		return -1;
	__sync_fetch_and_add(left, -1);
	/* To an interface that there is not: a sender would be told of a packet dropped here. */
	return bpf_redirect(0x7fffffff, 0);
}
"""


class Strangers:
    """Loaded once; attached where a test wants them, for as long as it wants."""

    def __init__(self) -> None:
        self._bpf = compiled(_SOURCE)
        self._fds = {
            name: self._bpf.load_func(name.encode(), kind).fd
            for name, kind in (
                ("pass_xdp", self._bpf.XDP),
                ("watch", self._bpf.SCHED_CLS),
                ("settle", self._bpf.SCHED_CLS),
                ("lose", self._bpf.SCHED_CLS),
            )
        }

    def close(self) -> None:
        self._bpf.cleanup()

    def id(self, program: str) -> int:
        """The kernel's number for a program."""
        return program_id(self._fds[program])

    def runs(self) -> int:
        """How often `watch` and `settle` ran."""
        return self._bpf[b"runs"][ctypes.c_int(0)].value

    def lose(self, count: int, *, least_length: int = 0) -> None:
        """`lose` drops the next `count` TCP packets of at least `least_length` bytes."""
        self._bpf[b"least_length"][ctypes.c_int(0)] = ctypes.c_uint64(least_length)
        self._bpf[b"to_drop"][ctypes.c_int(0)] = ctypes.c_int64(count)

    def still_to_lose(self) -> int:
        return self._bpf[b"to_drop"][ctypes.c_int(0)].value

    @contextlib.contextmanager
    def attached(
        self,
        lab: Lab,
        program: str,
        side: str,
        attach_type: int,
        *,
        first: bool = False,
        interface: str | None = None,
    ) -> Iterator[None]:
        """A program on one side's interface, before the others there or after them."""
        netns = lab.server_netns if side == "server" else lab.client_netns
        name = interface or (INTERFACE if side == "server" else CLIENT_INTERFACE)
        (ifindex,) = find_interfaces((name,), netns).values()
        try:
            link = netns.run(
                lambda: libbpf.link_create(
                    self._fds[program], ifindex, attach_type, _BPF_F_BEFORE if first else 0
                )
            )
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            link = None  # no tcx before 6.6
        if link is None:
            with _filter(netns, ifindex, self._fds[program], attach_type, first):
                yield
            return
        try:
            yield
        finally:
            os.close(link)


@contextlib.contextmanager
def _filter(
    netns: Netns, ifindex: int, program_fd: int, attach_type: int, first: bool
) -> Iterator[None]:
    """A program as a filter on a clsact qdisc, where there are no links."""
    parent = 0xFFFFFFF2 if attach_type == libbpf.BPF_TCX_INGRESS else 0xFFFFFFF3
    where = {"parent": parent, "prio": 1 if first else 60_000, "protocol": _ETH_P_ALL}

    def add() -> bool:
        with IPRoute() as route:
            try:
                route.tc("add", "clsact", ifindex)
                added = True
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
                added = False
            route.tc("add-filter", "bpf", ifindex, 1, fd=program_fd, name="stranger",
                     direct_action=True, **where)  # fmt: skip
        return added

    def remove(with_qdisc: bool) -> None:
        with IPRoute() as route:
            route.tc("del-filter", "bpf", ifindex, 1, **where)
            if with_qdisc:
                route.tc("del", "clsact", ifindex)

    with_qdisc = netns.run(add)
    try:
        yield
    finally:
        netns.run(lambda: remove(with_qdisc))


def program_id(fd: int) -> int:
    """The kernel's number for a loaded program."""
    with open(f"/proc/self/fdinfo/{fd}") as info:
        fields = dict(line.split(":", 1) for line in info)
    return int(fields["prog_id"])


@contextlib.contextmanager
def strangers() -> Iterator[Strangers]:
    """Strangers for the length of a `with` block."""
    loaded = Strangers()
    try:
        yield loaded
    finally:
        loaded.close()

# SPDX-License-Identifier: Apache-2.0
"""What is not otelbpf's is left as it was, and otelbpf leaves nothing behind."""

from __future__ import annotations

import contextlib
import ctypes
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lab import INTERFACE, PORT, Lab
from messages import OK, request
from meter import WHOLE, Meter, flags
from strangers import Strangers, program_id
from support.waiting import wait_until

from otelbpf.errors import KernelError
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.records import Counter


def _has_tcx() -> bool:
    with Btf.of_kernel() as btf:
        return btf.has_function("tcx_link_attach")


HAS_TCX = _has_tcx()
needs_tcx = pytest.mark.skipif(not HAS_TCX, reason="this kernel has no tcx links")

# Attaches everything and waits to be killed.
_VICTIM = """
import signal, sys
from otelbpf.agent.settings import settings
from otelbpf.kernel.attach import attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loader import Programs
from otelbpf.host.netns import find_netns

netns = find_netns(sys.argv[1])
with Btf.of_kernel() as btf:
    choices = choose(btf)
    programs = Programs(
        btf, choices, Limits(64, 8192), settings(netns.cookie, (int(sys.argv[3]),))
    )
with attached(programs, choices, find_interfaces((sys.argv[2],), netns), netns):
    fds = [programs.fd_of(choice.chosen) for choice in choices if choice.chosen]
    print(*fds, flush=True)
    signal.pause()
"""


def in_server(lab: Lab, *command: str) -> str:
    process = lab.popen("server", *command, stdout=subprocess.PIPE, text=True)
    output, _ = process.communicate(timeout=10)
    assert process.returncode == 0
    return output


def filter_ids(lab: Lab, direction: str) -> list[int]:
    """The programs of TC filters on the server's interface, as a kernel without tcx has them."""
    shown = in_server(lab, "tc", "-json", "filter", "show", "dev", INTERFACE, direction)
    filters = (filter_.get("options", {}) for filter_ in json.loads(shown or "[]"))
    return [options["prog"]["id"] for options in filters if "prog" in options]


def attached_ids(lab: Lab) -> dict[str, list[int]]:
    """The programs on the server's interface, by where they are.

    By ip, tc and libbpf, not bpftool: Debian 12's does not know tcx yet, and Ubuntu 24.04 has
    one only for its own kernels.
    """
    (link,) = json.loads(in_server(lab, "ip", "--json", "link", "show", "dev", INTERFACE))
    xdp = [link["xdp"]["prog"]["id"]] if "xdp" in link else []
    if HAS_TCX:
        # What TC filters would need.
        assert "clsact" not in in_server(lab, "tc", "qdisc", "show", "dev", INTERFACE)
        ingress, egress = (
            lab.server_netns.run(
                lambda kind=kind: bpf_info.attached_programs(link["ifindex"], kind)
            )
            for kind in (libbpf.BPF_TCX_INGRESS, libbpf.BPF_TCX_EGRESS)
        )
    else:
        ingress, egress = (filter_ids(lab, direction) for direction in ("ingress", "egress"))
    return {"xdp": xdp, "ingress": ingress, "egress": egress}


NOTHING = {"xdp": [], "ingress": [], "egress": []}


def ids_of(meter: Meter) -> dict[str, list[int]]:
    """What attached_ids() gives with otelbpf alone."""
    return {
        "xdp": [program_id(meter.programs.fd("xdp_arrival"))],
        "ingress": [program_id(meter.programs.fd("tc_ingress"))],
        "egress": [program_id(meter.programs.fd("tc_egress"))],
    }


def test_nothing_stays_attached(unattached: Meter) -> None:
    for _ in range(3):
        assert attached_ids(unattached.lab) == NOTHING
        with unattached.attached() as description:
            assert len(description) == sum(bool(choice.chosen) for choice in unattached.choices)
            assert attached_ids(unattached.lab) == ids_of(unattached)
    assert attached_ids(unattached.lab) == NOTHING


def test_another_xdp_program_is_not_replaced(unattached: Meter, stranger: Strangers) -> None:
    theirs = {**NOTHING, "xdp": [stranger.id("pass_xdp")]}
    with stranger.attached(unattached.lab, "pass_xdp", "server", libbpf.BPF_XDP):
        with (
            pytest.raises(KernelError, match=rf"{INTERFACE} \(it has an XDP program already"),
            unattached.attached(),
        ):
            pytest.fail("attached over another's program")
        assert attached_ids(unattached.lab) == theirs
    assert attached_ids(unattached.lab) == NOTHING
    # No raw tracepoint is left behind either: they would still be counting connections.
    unattached.lab.connect().exchange(request(), OK)
    assert unattached.counted_all() == {}


@needs_tcx
@pytest.mark.parametrize("program", ["watch", "settle"])
@pytest.mark.parametrize("first", [True, False], ids=["before ours", "after ours"])
def test_other_tcx_programs_see_every_packet_as_before(
    unattached: Meter, stranger: Strangers, first: bool, program: str
) -> None:
    """Whoever came first, ours is first in line and hands everything on."""
    lab, ours, theirs = unattached.lab, ids_of(unattached), stranger.id(program)
    with contextlib.ExitStack() as stack:
        if first:
            attach_strangers(stack, lab, stranger, program)
        stack.enter_context(unattached.attached())
        if not first:
            attach_strangers(stack, lab, stranger, program)
        for where in ("ingress", "egress"):
            assert attached_ids(lab)[where] == [*ours[where], theirs]
        pair = lab.connect()
        runs = stranger.runs()
        for _ in range(23):
            pair.exchange(request(), OK)
        assert [flags(record) for record in unattached.records(23)] == [WHOLE] * 23
        assert stranger.runs() - runs >= 2 * 23
    assert attached_ids(lab) == NOTHING


def attach_strangers(
    stack: contextlib.ExitStack, lab: Lab, stranger: Strangers, program: str
) -> None:
    for kind in (libbpf.BPF_TCX_INGRESS, libbpf.BPF_TCX_EGRESS):
        stack.enter_context(stranger.attached(lab, program, "server", kind))


@needs_tcx
def test_a_killed_agent_leaves_nothing_behind(unattached: Meter, stranger: Strangers) -> None:
    name = unattached.lab.server_netns.name
    with stranger.attached(unattached.lab, "watch", "server", libbpf.BPF_TCX_INGRESS):
        victim = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _VICTIM, name, INTERFACE, str(PORT)],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            fds = victim.stdout.readline().split()
            ids = {prog_id_of(victim.pid, fd) for fd in fds}
            assert len(ids) == 12
            assert ids <= loaded_ids()
            assert attached_ids(unattached.lab)["xdp"][0] in ids
        finally:
            victim.send_signal(signal.SIGKILL)
            victim.wait()
            victim.stdout.close()
        theirs = {**NOTHING, "ingress": [stranger.id("watch")]}
        wait_until(
            lambda: attached_ids(unattached.lab) == theirs, "the killed agent's links were gone"
        )
        wait_until(lambda: not ids & loaded_ids(), "the killed agent's programs were unloaded")
    # Another agent can start at once.
    with unattached.attached():
        pair = unattached.lab.connect()
        pair.exchange(request(), OK)
        assert flags(unattached.record()) == WHOLE


def prog_id_of(pid: int, fd: str) -> int:
    lines = Path(f"/proc/{pid}/fdinfo/{fd}").read_text().splitlines()
    return int(dict(line.split(":", 1) for line in lines)["prog_id"])


def loaded_ids() -> set[int]:
    """Every program in the kernel."""
    ids, last = set(), ctypes.c_uint32(0)
    while ctypes.CDLL("libbpf.so.1").bpf_prog_get_next_id(last, ctypes.byref(last)) == 0:
        ids.add(last.value)
    return ids


def test_requests_cut_off_by_detaching_are_still_accounted_for(unattached: Meter) -> None:
    """Half of it was seen: the agent's last sweep counts it."""
    pair = unattached.lab.connect()
    with unattached.attached():
        pair.ask(request())
    pair.answer(OK)
    unattached.sweeper.finish(time.monotonic_ns())
    assert unattached.losses() == {Counter.LOST_STOPPED: 1}
    assert unattached.counted(Counter.SEEN) == 1

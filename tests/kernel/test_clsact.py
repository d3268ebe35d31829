# SPDX-License-Identifier: Apache-2.0
"""TC without tcx links: filters on a clsact qdisc, which the kernel does not clean up itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from lab import INTERFACE, PORT, Lab, laboratory
from messages import OK, request
from meter import SMALL, Meter, stamps
from support.commands import run

from otelbpf.agent.settings import settings
from otelbpf.errors import KernelError
from otelbpf.host.interfaces import find_interfaces
from otelbpf.kernel.attach import attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import Choice, choose
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import Stamp

HERE = Path(__file__).resolve().parent
# Attaches by clsact, says so, and waits to be killed.
_ATTACHER = """
import sys, time
from test_clsact import load_by_clsact
from otelbpf.host import interfaces, netns
from otelbpf.kernel import attach
namespace = netns.find_netns(sys.argv[1])
programs, choices = load_by_clsact(namespace)
found = interfaces.find_interfaces((sys.argv[2],), namespace)
with attach.attached(programs, choices, found, namespace):
    print("attached", flush=True)
    time.sleep(60)
"""


def load_by_clsact(netns) -> tuple[Programs, tuple[Choice, ...]]:
    """The programs, to be attached by clsact in both directions of TC."""
    with Btf.of_kernel() as btf:
        choices = tuple(
            choice.without(choice.hook.candidates[0], "not in this test")
            if choice.hook.name in ("ingress", "egress")
            else choice
            for choice in choose(btf)
        )
        return Programs(btf, choices, SMALL, settings(netns.cookie, (PORT,))), choices


def shown(lab: Lab) -> str:
    """All qdiscs and filters of the server's interface, in tc's words."""
    commands = (
        ("qdisc", "show", "dev", INTERFACE),
        *(("filter", "show", "dev", INTERFACE, side) for side in ("ingress", "egress")),
    )
    enter = ("nsenter", f"--net={lab.server_netns.path}", "tc")
    return "".join(run(*enter, *command) for command in commands)


@pytest.fixture(scope="module")
def own_lab() -> Iterator[Lab]:
    with laboratory() as lab:
        yield lab


@pytest.fixture
def clsact_meter(own_lab: Lab) -> Iterator[Meter]:
    programs, choices = load_by_clsact(own_lab.server_netns)
    meter = Meter(own_lab, choices, programs)
    meter.let_another_process_be_the_agent()
    try:
        yield meter
    finally:
        own_lab.close_connections()
        meter.close()


def test_a_filter_gives_the_same_stamps_and_is_taken_off(clsact_meter: Meter) -> None:
    with clsact_meter.attached() as description:
        assert f"clsact ingress on {INTERFACE}" in description
        assert f"clsact egress on {INTERFACE}" in description
        pair = clsact_meter.lab.connect()
        for _ in range(3):
            pair.exchange(request(), OK)
        for record in clsact_meter.records(3):
            assert {Stamp.NIC, Stamp.TC, Stamp.TC_OUT, Stamp.ACKED} <= set(stamps(record))
    assert "clsact" not in shown(clsact_meter.lab)


def test_an_interface_that_is_removed_before_it_is_attached_to(clsact_meter: Meter) -> None:
    """The kernel's own word for it would be about its configuration."""
    meter, netns = clsact_meter, clsact_meter.netns
    run("ip", "-n", netns.name, "tuntap", "add", "mode", "tap", "name", "tap0")
    found = find_interfaces((INTERFACE, "tap0"), netns)
    run("ip", "-n", netns.name, "link", "del", "tap0")
    with (
        pytest.raises(KernelError, match="cannot attach to interface tap0: it was removed"),
        attached(meter.programs, meter.choices, found, netns),
    ):
        pass
    assert "clsact" not in shown(meter.lab)


def test_a_filter_of_somebody_else_stays_and_so_does_its_qdisc(clsact_meter: Meter) -> None:
    lab = clsact_meter.lab
    enter = ("nsenter", f"--net={lab.server_netns.path}", "tc")
    with clsact_meter.attached():
        run(
            *enter,
            "filter",
            "add",
            "dev",
            INTERFACE,
            "ingress",
            "pref",
            "7",
            "protocol",
            "ip",
            "u32",
            "match",
            "u32",
            "0",
            "0",
        )
        assert "otelbpf-" in shown(lab)
    after = shown(lab)
    assert "otelbpf-" not in after
    assert "pref 7 u32" in after
    run(*enter, "qdisc", "del", "dev", INTERFACE, "clsact")


def test_what_a_killed_agent_left_goes_at_the_next_start(clsact_meter: Meter) -> None:
    lab = clsact_meter.lab
    process = subprocess.Popen(
        [sys.executable, "-c", _ATTACHER, str(lab.server_netns.path), INTERFACE],
        stdout=subprocess.PIPE,
        text=True,
        cwd=HERE,
        env={**os.environ, "PYTHONPATH": str(HERE.parent)},
    )
    with process:
        assert process.stdout.readline() == "attached\n"
        process.send_signal(signal.SIGKILL)
    left = f"-{process.pid}-"
    assert shown(lab).count(left) == 2
    with clsact_meter.attached():
        assert left not in shown(lab)
    run(
        "nsenter",
        f"--net={lab.server_netns.path}",
        "tc",
        "qdisc",
        "del",
        "dev",
        INTERFACE,
        "clsact",
    )

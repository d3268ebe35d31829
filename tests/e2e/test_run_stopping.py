# SPDX-License-Identifier: Apache-2.0
"""However the agent ends, the kernel is as it was before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Behaviour, Receiver
from servers import Server
from stack import (
    COUNT,
    KernelIds,
    agent,
    assert_nothing_left,
    kernel_ids,
    measured,
    otelbpf,
    to,
    wait_for_requests,
)
from support.namespaces import Network
from support.waiting import wait_until

NOTHING = KernelIds(frozenset(), frozenset())


def options(net: Network, server: Server) -> tuple[str | int, ...]:
    return ("--interface", net.server.interface, "--port", server.port, "--netns", net.server.netns)


def ask(net: Network, server: Server, count: int = COUNT) -> None:
    with Client.of(net, server.port) as client:
        for number in range(count):
            client.ask(f"/{number}")


def assert_interface_is_free(net: Network) -> None:
    assert net.server.xdp_program() is None
    assert "clsact" not in net.server.qdiscs()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_drains_flushes_and_detaches(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, number: signal.Signals
) -> None:
    """At once after the last response: what is in the ring and the queue is still sent."""
    environment = {**to(receiver), "OTEL_BSP_SCHEDULE_DELAY": "60000"}
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        ids = kernel_ids(running.pid)
        assert ids.left() == ids
        assert len(ids.links) >= 3
        assert net.server.xdp_program() in ids.programs
        ask(net, server)
        ended = running.stop(number)
        assert not running.ready_file.exists()
    ended.assert_clean(seen=COUNT)
    assert len(measured(receiver.spans())) == COUNT
    assert ended.stdout == ""
    assert_interface_is_free(net)
    assert_nothing_left(ids)


@pytest.mark.parametrize("to_nobody", ["2>/dev/full", "2>&-", "2> >(head --lines 1)"])
def test_nobody_hears_what_it_says(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, to_nobody: str
) -> None:
    """A log on a full disk, none at all, and one whose reader has ended: it measures on."""
    under = ("bash", "-c", f'exec "$@" {to_nobody}', "bash")
    with agent(tmp_path, *options(net, server), environment=to(receiver), under=under) as running:
        running.wait_ready()
        ask(net, server)
        ended = running.stop()
    assert ended.code == 0
    assert ended.sums is not None
    assert (ended.sums["seen"], ended.sums["exported"]) == (COUNT, COUNT)
    assert len(measured(receiver.spans())) == COUNT


def test_a_second_signal_does_not_hurry_it(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.behave(Behaviour(delay_s=0.2))
    with agent(tmp_path, *options(net, server), environment=to(receiver)) as running:
        running.wait_ready()
        ask(net, server)
        running.send(signal.SIGTERM)
        wait_until(lambda: not running.ready_file.exists(), "it is detached")
        running.send(signal.SIGINT)
        running.wait().assert_clean(seen=COUNT)
    assert len(measured(receiver.spans())) == COUNT


def test_a_second_ctrl_c_ends_it_at_once(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.behave(Behaviour(delay_s=5.0))
    with agent(tmp_path, *options(net, server), environment=to(receiver)) as running:
        running.wait_ready()
        ids = kernel_ids(running.pid)
        ask(net, server)
        running.send(signal.SIGINT)
        wait_until(lambda: not running.ready_file.exists(), "it is detached")
        assert running.stop(signal.SIGINT).code == -signal.SIGINT
    assert_nothing_left(ids)


def test_killed_it_leaves_nothing_behind_and_another_can_start(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    with agent(tmp_path, *options(net, server), environment=to(receiver)) as running:
        running.wait_ready()
        ids = kernel_ids(running.pid)
        assert ids.left() == ids
        ask(net, server)
        ended = running.stop(signal.SIGKILL)
    assert ended.code == -signal.SIGKILL
    wait_until(lambda: net.server.xdp_program() is None, "XDP is detached")
    assert_nothing_left(ids)
    assert_interface_is_free(net)
    ask(net, server)
    with agent(tmp_path, *options(net, server), environment=to(receiver)) as running:
        running.wait_ready()
        ask(net, server)
        running.stop().assert_clean(seen=COUNT)


def test_a_second_agent_leaves_the_xdp_slot_alone_and_works_without(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """The first one is not affected by either."""
    with (
        Receiver() as second_receiver,
        agent(tmp_path, *options(net, server), environment=to(receiver)) as first,
    ):
        first.wait_ready()
        program, ids = net.server.xdp_program(), kernel_ids(first.pid)
        refused = otelbpf(
            tmp_path, "run", *options(net, server), "--xdp", "on", environment=to(second_receiver)
        )
        refused.assert_refused("it has an XDP program already", "--xdp auto")
        assert (net.server.xdp_program(), kernel_ids(first.pid)) == (program, ids)
        with agent(
            tmp_path, *options(net, server), "--xdp", "auto", environment=to(second_receiver)
        ) as second:
            second.wait_ready()
            assert f"absent from requests: nic, nic_last on {net.server.interface}" in second.stderr
            second_ids = kernel_ids(second.pid)
            ask(net, server)
            requests = wait_for_requests(receiver, COUNT)
            second_requests = wait_for_requests(second_receiver, COUNT)
            second.stop().assert_clean(seen=COUNT)
        assert_nothing_left(second_ids)
        assert (net.server.xdp_program(), ids.left()) == (program, ids)
        ask(net, server)
        wait_for_requests(receiver, 2 * COUNT)
        first.stop().assert_clean(seen=2 * COUNT)

    # Two agents tell the same tale, but for the first line.
    for one, other in zip(requests, second_requests, strict=True):
        assert one.span.attributes.keys() == other.span.attributes.keys()
        assert "nic" in other["otelbpf.ledger.absent"]
        assert one["otelbpf.ledger.complete"] is True
        assert (one["client.port"], one["otelbpf.connection.request"]) == (
            other["client.port"],
            other["otelbpf.connection.request"],
        )


def test_it_does_not_hold_up_the_namespace_or_the_interface(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """The second interface is taken away from under it; the first one's requests go on."""
    with agent(
        tmp_path,
        *options(net, server),
        "--interface",
        net.second.interface,
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        ask(net, server)
        wait_for_requests(receiver, COUNT)
        os.spawnlp(
            os.P_WAIT,
            "ip",
            "ip",
            "-n",
            net.server.netns,
            "link",
            "del",
            "dev",
            net.second.interface,
        )
        ask(net, server)
        wait_for_requests(receiver, 2 * COUNT)
        running.stop().assert_clean(seen=2 * COUNT)

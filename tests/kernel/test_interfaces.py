# SPDX-License-Identifier: Apache-2.0
"""Which interfaces and namespaces are measured, and which are not."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest
from lab import INTERFACE, PORT, SERVER_IPV4, SERVER_IPV6, Lab, Pair, prepare
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stamps
from strangers import Strangers
from support.commands import run

from otelbpf.errors import KernelError
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.host.netns import current_cookie
from otelbpf.kernel import libbpf
from otelbpf.kernel.attach import attached
from otelbpf.kernel.on_interface import OnInterface
from otelbpf.kernel.records import Stamp
from otelbpf.kernel.xdp_slots import VETH_AND_XDP, look_at_xdp

EVERYWHERE = {
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.READ, Stamp.WRITE, Stamp.TC_OUT,
    Stamp.ACKED,
}  # fmt: skip


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", SERVER_IPV4, SERVER_IPV6])
def test_loopback_is_an_interface_like_any_other(unattached: Meter, host: str) -> None:
    """Each packet passes it twice, out and in, and is taken once."""
    with unattached.attached("lo") as description:
        assert "XDP generic on lo" in description
        pair = unattached.lab.connect(host, client_side="server")
        answered = response(body=bytes(10_000))
        for _ in range(23):
            pair.exchange(request(), answered)
        records = unattached.records(23)
        assert records["ordinal"].tolist() == list(range(23))
        assert set(records["response_bytes"].tolist()) == {len(answered)}
        for record in records:
            assert flags(record) == WHOLE
            assert set(stamps(record)) >= EVERYWHERE
        unattached.lab.close_connections()


def test_a_thread_comes_back_from_another_namespace(lab: Lab) -> None:
    here = current_cookie()
    there = lab.server_netns.run(current_cookie)
    assert there != here
    assert current_cookie() == here

    def fails() -> None:
        assert current_cookie() == there
        raise OSError("nothing works")

    with pytest.raises(OSError, match="nothing works"):
        lab.server_netns.run(fails)
    assert current_cookie() == here


def test_several_interfaces_at_once(unattached: Meter) -> None:
    with unattached.attached("lo", INTERFACE):
        near = unattached.lab.connect(client_side="server")
        far = unattached.lab.connect()
        for pair in (near, far, near, far, far):
            pair.exchange(request(), OK)
        records = unattached.records(5)
        ports = [near.peer_port, far.peer_port, near.peer_port, far.peer_port, far.peer_port]
        assert records["peer_port"].tolist() == ports
        assert records["ordinal"].tolist() == [0, 0, 1, 1, 2]
        unattached.lab.close_connections()


def absent(meter: Meter, *names: str) -> list[str]:
    """What is said of requests on these interfaces when XDP is not insisted upon."""
    found = find_interfaces(names, meter.netns)
    with attached(meter.programs, meter.choices, found, meter.netns, xdp=Xdp.AUTO) as attachments:
        for name in names:
            said = any(f"on {name}: " in each for each in attachments.absent)
            assert said != (f"XDP native on {name}" in attachments.description)
            assert f"XDP generic on {name}" not in attachments.description
        return [each for each in attachments.absent if each.startswith("nic")]


@pytest.fixture
def tap(unattached: Meter) -> Iterator[str]:
    """An interface whose driver has XDP, and is no veth's."""
    run("ip", "-n", unattached.netns.name, "tuntap", "add", "mode", "tap", "name", "tap0")
    yield "tap0"
    with contextlib.suppress(RuntimeError):  # a test may have removed it
        run("ip", "-n", unattached.netns.name, "link", "del", "tap0")


def test_xdp_unasked_only_where_the_driver_has_it_and_it_slows_nothing_down(
    unattached: Meter, tap: str
) -> None:
    of_veth, of_loopback = absent(unattached, INTERFACE, tap, "lo")
    assert of_veth.startswith(f"nic, nic_last on {INTERFACE}: {VETH_AND_XDP}")
    assert of_loopback.startswith("nic, nic_last on lo: native: ")


def test_xdp_unasked_never_where_somebody_else_has_it(
    unattached: Meter, stranger: Strangers, tap: str
) -> None:
    (index,) = find_interfaces((tap,), unattached.netns).values()
    with stranger.attached(unattached.lab, "pass_xdp", "server", libbpf.BPF_XDP, interface=tap):
        (said,) = absent(unattached, tap)
        assert "it has an XDP program already" in said
        assert look_at_xdp(index, unattached.netns).program == stranger.id("pass_xdp")
    assert absent(unattached, tap) == []


@pytest.mark.parametrize("xdp", [Xdp.AUTO, Xdp.ON])
@pytest.mark.parametrize("when", ["before all", "before XDP"])
def test_one_that_is_removed_while_the_programs_are_loaded(
    unattached: Meter, tap: str, when: str, xdp: Xdp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the kernel says of it then; and of the others nothing is left attached."""
    meter, attach_xdp = unattached, OnInterface.attach_xdp
    found = find_interfaces((INTERFACE, tap), meter.netns)

    def remove_it_first(on: OnInterface, *, insist: bool) -> None:
        if on.name == tap:
            run("ip", "-n", meter.netns.name, "link", "del", tap)
        attach_xdp(on, insist=insist)

    if when == "before XDP":
        monkeypatch.setattr(OnInterface, "attach_xdp", remove_it_first)
    else:
        run("ip", "-n", meter.netns.name, "link", "del", tap)
    before = len(os.listdir("/proc/self/fd"))
    with (
        pytest.raises(KernelError, match=f"interface {tap}: it was removed"),
        attached(meter.programs, meter.choices, found, meter.netns, xdp=xdp),
    ):
        pass
    assert len(os.listdir("/proc/self/fd")) == before
    assert look_at_xdp(found[INTERFACE], meter.netns).program is None


def test_an_interface_that_is_not_asked_for_is_not_measured(lab: Lab, meter: Meter) -> None:
    """And its connection is noticed: test_unseen.py."""
    meter.unseen = 1
    lab.connect(client_side="server").exchange(request(), OK)
    assert meter.counted_all() == {"CONNECTIONS_OPENED": 1, "CONNECTIONS_UNSEEN": 1}


def test_the_same_port_in_another_namespace_is_not_measured(lab: Lab, meter: Meter) -> None:
    with lab.socket("client", socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", PORT))
        listener.listen()
        client = lab.socket("client", socket.AF_INET)
        client.connect(("127.0.0.1", PORT))
        pair = lab.keep(Pair(client, prepare(listener.accept()[0])))
        pair.exchange(request(), OK)
    lab.close_connections()
    assert meter.counted_all() == {}


def test_requests_that_the_server_makes_itself_are_not_its_own(lab: Lab, meter: Meter) -> None:
    """To the measured port of another machine: there the port is the peer's."""
    with lab.socket("client", socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("0.0.0.0", PORT))
        listener.listen()
        client = lab.socket("server", socket.AF_INET)
        client.connect(("198.18.0.2", PORT))
        pair = lab.keep(Pair(client, prepare(listener.accept()[0])))
        pair.exchange(request(), OK)
    lab.close_connections()
    assert meter.counted_all() == {}

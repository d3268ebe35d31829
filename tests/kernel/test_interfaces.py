# SPDX-License-Identifier: Apache-2.0
"""Which interfaces and namespaces are measured, and which are not."""

from __future__ import annotations

import socket

import pytest
from lab import INTERFACE, PORT, SERVER_IPV4, SERVER_IPV6, Lab, Pair, prepare
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stamps

from otelbpf.records import Stamp

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


def test_an_interface_that_is_not_asked_for_is_not_measured(lab: Lab, meter: Meter) -> None:
    lab.connect(client_side="server").exchange(request(), OK)
    assert meter.counted_all().keys() <= {"CONNECTIONS_OPENED"}


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

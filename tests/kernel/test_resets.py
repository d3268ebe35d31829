# SPDX-License-Identifier: Apache-2.0
"""Which connections end with a reset, and whose it is."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from frames import UpstreamWire, Wire
from lab import CLIENT_IPV4, SERVER_IPV4, reset, unread_bytes
from netem import tcp_statistics
from sums_of_connections import Sums, spare_listener
from support.frames import ACK, RST, Frame
from support.waiting import wait_until

from otelbpf.ledger.request import Kind

pytestmark = pytest.mark.guest


def send(sender: socket.socket, receiver: socket.socket) -> None:
    """Something that is not read."""
    sender.sendall(b"x")
    wait_until(lambda: unread_bytes(receiver), "it arrived")


def linger(own: socket.socket, peer: socket.socket) -> None:
    reset(own)


def unread(own: socket.socket, peer: socket.socket) -> None:
    send(peer, own)
    own.close()


def unread_once_it_was_shut_down(own: socket.socket, peer: socket.socket) -> None:
    own.shutdown(socket.SHUT_WR)
    assert peer.recv(1) == b""
    send(peer, own)
    own.close()


def unread_after_the_peers_end(own: socket.socket, peer: socket.socket) -> None:
    send(peer, own)
    peer.shutdown(socket.SHUT_WR)
    own.close()


RESETS = (linger, unread, unread_once_it_was_shut_down, unread_after_the_peers_end)


@pytest.mark.parametrize("way", RESETS)
def test_by_this_side(sums: Sums, way: Callable[..., None]) -> None:
    for _ in range(5):
        pair = sums.lab.connect()
        way(sums.own(pair), sums.peer(pair))
    sums.expect(opened=5, closed=5, reset=5)


@pytest.mark.parametrize("way", RESETS)
def test_by_the_other_side(sums: Sums, way: Callable[..., None]) -> None:
    for _ in range(5):
        pair = sums.lab.connect()
        way(sums.peer(pair), sums.own(pair))
    sums.expect(opened=5, closed=5, reset=5, reset_by_peer=5)


def test_data_for_a_socket_that_nobody_has_any_more(sums: Sums) -> None:
    """As often as the kernel itself says: where it has acknowledged the FIN first it is over."""
    netns = sums.meter.netns
    before = tcp_statistics(netns)["TCPAbortOnData"]
    tries = 0
    while tcp_statistics(netns)["TCPAbortOnData"] == before:
        tries += 1
        assert tries < 100
        pair = sums.lab.connect()
        sums.own(pair).close()
        sums.peer(pair).sendall(b"x")
        sums.peer(pair).close()
    aborted = tcp_statistics(netns)["TCPAbortOnData"] - before
    sums.expect(opened=tries, closed=tries, reset=aborted)


def test_a_listener_that_goes_resets_whom_it_has_not_accepted(servers: Sums) -> None:
    client = servers.lab.socket("client", socket.AF_INET)
    with spare_listener(servers.lab) as listener:
        client.connect(listener.getsockname())
        servers.expect(opened=1)
    servers.expect(opened=1, closed=1, reset=1)
    client.close()


def test_a_rst_that_tcp_does_not_believe_ends_nothing(sums: Sums) -> None:
    pair = sums.lab.connect()
    frame = Frame(client=CLIENT_IPV4, server=SERVER_IPV4, client_port=pair.peer_port,
                  flags=RST | ACK)  # fmt: skip
    if sums.kind is Kind.SERVER:
        Wire(sums.meter).deliver(frame)
    else:
        UpstreamWire(sums.meter).emit(frame.turned())
    pair.close()
    sums.expect(opened=1, closed=1)


@pytest.mark.parametrize("first", ["client", "server"])
def test_an_orderly_end_is_no_reset(sums: Sums, first: str) -> None:
    for _ in range(5):
        pair = sums.lab.connect()
        ends = [pair.client, pair.server]
        for end in ends if first == "client" else reversed(ends):
            end.close()
    sums.expect(opened=5, closed=5)

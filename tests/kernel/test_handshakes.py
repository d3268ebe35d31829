# SPDX-License-Identifier: Apache-2.0
"""How long connections take to begin, how long they wait for accept(), and which do not begin."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import time
from collections.abc import Iterator

import pytest
from frames import UpstreamWire, Wire, fresh_port, verdict
from lab import (
    INTERFACE,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Lab,
    Pair,
    prepare,
    reset,
    setting,
)
from messages import OK, request
from meter import FREE_PORT, GATEWAY_PORT
from netem import tcp_statistics
from puppet import Puppet
from sums_of_connections import Sums, spare_listener
from support.frames import ACK, RST, SYN, Frame
from support.waiting import DEADLINE_S, wait_until

from otelbpf.ledger.request import Kind

pytestmark = pytest.mark.guest

HELD_NS = 50_000_000
COUNT = 23
SEQ = 2**32 - 1
ETHERNET = 14


def hold() -> tuple[int, int]:
    """Lets time pass; gives when that began and ended."""
    began = time.monotonic_ns()
    wait_until(lambda: time.monotonic_ns() >= began + HELD_NS, "time had passed")
    return began, time.monotonic_ns()


@contextlib.contextmanager
def full_queue(lab: Lab) -> Iterator[socket.socket]:
    """A listener at SPARE_PORT with room for no other connection until one is accepted."""
    with spare_listener(lab, backlog=0) as listener:
        fill(lab, listener)
        yield listener


def fill(lab: Lab, listener: socket.socket) -> socket.socket:
    client = lab.socket("client", socket.AF_INET)
    client.connect(listener.getsockname())
    lab.keep(Pair(client, listener))
    wait_until_queued(listener)
    return client


def drops(lab: Lab) -> int:
    """How many SYNs the server's kernel has thrown away."""
    return tcp_statistics(lab.server_netns)["ListenDrops"]


def wait_until_queued(listener: socket.socket) -> None:
    listener.settimeout(DEADLINE_S)
    wait_until(lambda: select.select([listener], [], [], 0)[0], "a connection waited for accept()")


# ---- handshakes ----


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_a_handshake_is_within_what_connect_takes(sums: Sums, host: str) -> None:
    spent = 0
    for _ in range(COUNT):
        before = time.monotonic_ns()
        sums.lab.connect(host)
        spent += time.monotonic_ns() - before
    sums.expect(opened=COUNT)
    count, sum_ns = sums.handshakes()
    assert count == COUNT
    assert 0 < sum_ns <= spent
    sums.lab.close_connections()
    sums.expect(opened=COUNT, closed=COUNT)


def test_the_acknowledgement_comes_late(servers: Sums) -> None:
    """And the SYN twice: the client has waited since the first."""
    listener = servers.lab.listener(SERVER_IPV4)
    with Puppet(servers.lab) as puppet:
        before = time.monotonic_ns()
        answer = puppet.ask(SEQ)
        held_from, _ = hold()
        puppet.ask(SEQ)
        _, held_to = hold()
        assert servers.handshakes() == (0, 0)
        puppet.send(ACK, SEQ + 1, answer + 1)
        wait_until_queued(listener)
        after = time.monotonic_ns()
        accepted, _ = listener.accept()
        accepted.close()
        puppet.leave(SEQ + 1, answer + 1)
    count, sum_ns = servers.handshakes()
    assert count == 1
    assert held_to - held_from <= sum_ns <= after - before
    assert "unanswered" not in servers.counts()


def test_another_attempt_from_the_same_port_is_another_handshake(servers: Sums) -> None:
    listener = servers.lab.listener(SERVER_IPV4)
    with Puppet(servers.lab) as puppet:
        first = puppet.ask(SEQ)
        puppet.send(RST, SEQ + 1, first + 1)
        hold()
        before = time.monotonic_ns()
        answer = puppet.ask(SEQ + 100_000)
        puppet.send(ACK, SEQ + 100_001, answer + 1)
        wait_until_queued(listener)
        after = time.monotonic_ns()
        listener.accept()[0].close()
        puppet.leave(SEQ + 100_001, answer + 1)
    count, sum_ns = servers.handshakes()
    assert count == 1
    assert sum_ns <= after - before


def test_a_handshake_that_data_ends(servers: Sums) -> None:
    """With TCP_DEFER_ACCEPT the client's acknowledgement alone does not."""
    listener = servers.lab.listener(SERVER_IPV4)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 5)
    try:
        client = servers.lab.socket("client", socket.AF_INET)
        before = time.monotonic_ns()
        client.connect(listener.getsockname())
        held_from, held_to = hold()
        client.sendall(request())
        pair = servers.lab.keep(Pair(client, prepare(listener.accept()[0])))
        after = time.monotonic_ns()
    finally:
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 0)
    pair.server.recv(len(request()))
    pair.answer(OK)
    servers.meter.record()
    count, sum_ns = servers.handshakes()
    assert count == 1
    assert held_to - held_from <= sum_ns <= after - before


@pytest.mark.parametrize("name", ["net.ipv4.tcp_syncookies=2", "net.ipv4.tcp_timestamps=0"])
def test_syn_cookies_and_bare_segments(servers: Sums, name: str) -> None:
    with setting(servers.lab, *name.split("=")):
        for _ in range(3):
            servers.lab.connect()
    assert servers.handshakes()[0] == 3
    servers.expect(opened=3)


def test_data_in_the_syn(servers: Sums) -> None:
    """TCP Fast Open: accepted before the handshake is over, which is measured all the same."""
    without_a_cookie = str(0x2 | 0x200 | 0x400)
    with (
        setting(servers.lab, "net.ipv4.tcp_fastopen", without_a_cookie),
        spare_listener(servers.lab) as listener,
        Puppet(servers.lab, SPARE_PORT) as puppet,
    ):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, 5)
        puppet.send(SYN, SEQ, payload=b"no request")
        answer = puppet.receive(SYN | ACK)
        accepted, _ = listener.accept()
        assert accepted.recv(16) == b"no request"
        assert servers.handshakes() == (0, 0)
        puppet.send(ACK, SEQ + 11, answer + 1)
        servers.expect(opened=1)
        puppet.leave(SEQ + 11, answer + 1)
        servers.expect(opened=1, closed=1, reset=1, reset_by_peer=1)
        accepted.close()
    assert servers.handshakes()[0] == 1
    assert servers.waits() == (0, 0)


def test_a_connection_older_than_the_agent_has_no_handshake(unattached_servers: Sums) -> None:
    sums = unattached_servers
    pair = sums.lab.connect()
    with sums.attached():
        pair.exchange(request(), OK)
        sums.meter.record()
        sums.expect(adopted=1)
        sums.lab.close_connections()
        sums.expect(adopted=1, closed=1)
        assert sums.handshakes() == (0, 0)


def test_both_ends_on_loopback(clients: Sums) -> None:
    with clients.lab.socket("client", socket.AF_INET) as listener:
        listener.bind(("127.0.0.1", GATEWAY_PORT))
        listener.listen()
        before = time.monotonic_ns()
        client = clients.lab.socket("client", socket.AF_INET)
        client.connect(listener.getsockname())
        server, _ = listener.accept()
        spent = time.monotonic_ns() - before
        client.close()
        server.close()
        for kind in Kind.SERVER, Kind.CLIENT:
            clients.expect(kind, opened=1, closed=1)
            count, sum_ns = clients.handshakes(kind)
            assert count == 1
            assert sum_ns <= spent


# ---- the wait for accept() ----


def test_the_wait_for_accept(servers: Sums) -> None:
    listener = servers.lab.listener(SERVER_IPV4)
    before = time.monotonic_ns()
    clients = [servers.lab.socket("client", socket.AF_INET) for _ in range(COUNT)]
    for client in clients:
        client.connect(listener.getsockname())
    servers.expect(opened=COUNT)
    assert servers.waits() == (0, 0)
    held_from, held_to = hold()
    for client in clients:
        servers.lab.keep(Pair(client, listener.accept()[0]))
    after = time.monotonic_ns()
    count, sum_ns = servers.waits()
    if not servers.has_accept:
        assert count == 0
        return
    assert count == COUNT
    assert COUNT * (held_to - held_from) <= sum_ns
    # It begins where the handshake ends.
    assert sum_ns + servers.handshakes()[1] <= COUNT * (after - before)


def test_a_wait_that_no_accept_ends(servers: Sums) -> None:
    listener = servers.lab.listener(SERVER_IPV4)
    client = servers.lab.socket("client", socket.AF_INET)
    client.connect(listener.getsockname())
    wait_until_queued(listener)
    reset(client)
    servers.expect(opened=1, closed=1, reset=1, reset_by_peer=1)
    listener.accept()[0].close()
    assert servers.waits() == (0, 0)


# ---- what is not granted ----


@pytest.mark.parametrize("host", [SERVER_IPV4, SERVER_IPV6])
def test_nobody_listens(sums: Sums, host: str) -> None:
    port = SPARE_PORT if sums.kind is Kind.SERVER else FREE_PORT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    for _ in range(COUNT):
        with sums.lab.socket("client", family) as client, pytest.raises(ConnectionRefusedError):
            client.connect((host, port))
    sums.expect(refused=COUNT)
    assert sums.handshakes() == (0, 0)


@pytest.mark.parametrize(
    "around",
    [
        {},
        {"vlans": ((0x8100, 7),)},
        {"vlans": ((0x88A8, 7), (0x8100, 8))},
        {"client": "2001:db8::1", "server": "2001:db8::2"},
    ],
    ids=["ipv4", "vlan", "vlans", "ipv6"],
)
def test_a_syn_and_what_answers_it_in_any_frame(servers: Sums, around: dict[str, object]) -> None:
    wire = Wire(servers.meter)
    syn = Frame(seq=SEQ, flags=SYN, client_port=fresh_port(), **around)
    wire.take(syn)
    wire.emit(syn.turned(flags=RST | ACK))
    wire.emit(syn.turned(flags=RST | ACK))
    assert servers.counts() == {"refused": 1}


def test_a_rst_that_answers_no_syn_refuses_nobody(sums: Sums) -> None:
    wire = (Wire if sums.kind is Kind.SERVER else UpstreamWire)(sums.meter)
    frame = Frame(client_port=fresh_port(), flags=RST | ACK)
    wire.deliver(frame)
    wire.emit(frame.turned())
    assert sums.counts() == {}


def test_the_accept_queue_is_full_and_says_so(servers: Sums) -> None:
    """The SYN still found room; the end of the handshake did not."""
    with (
        setting(servers.lab, "net.ipv4.tcp_abort_on_overflow", "1"),
        full_queue(servers.lab) as listener,
        Puppet(servers.lab, SPARE_PORT) as puppet,
    ):
        listener.accept()[0].close()
        answer = puppet.ask(SEQ)
        fill(servers.lab, listener)
        puppet.send(ACK, SEQ + 1, answer + 1)
        puppet.receive(RST)
        assert servers.counts()["refused"] == 1
        assert servers.counts()["opened"] == servers.handshakes()[0] == 2


def test_the_accept_queue_is_full_and_says_nothing(servers: Sums) -> None:
    """The SYN comes again until there is room; it is one connection that was not answered."""
    with full_queue(servers.lab) as listener, Puppet(servers.lab, SPARE_PORT) as puppet:
        before = time.monotonic_ns()
        for _ in range(3):
            dropped = drops(servers.lab)
            puppet.send(SYN, SEQ)
            wait_until(lambda dropped=dropped: drops(servers.lab) > dropped, "it was dropped")
        assert servers.counts() == {"opened": 1, "unanswered": 1}
        held_from, held_to = hold()
        listener.accept()[0].close()
        _, known_ns = servers.handshakes()
        answer = puppet.ask(SEQ)
        puppet.send(ACK, SEQ + 1, answer + 1)
        wait_until_queued(listener)
        after = time.monotonic_ns()
        count, sum_ns = servers.handshakes()
        assert count == 2
        assert held_to - held_from <= sum_ns - known_ns <= after - before
        assert servers.counts()["unanswered"] == 1
        puppet.leave(SEQ + 1, answer + 1)


def test_a_syn_that_passes_two_interfaces_has_not_come_again(servers: Sums) -> None:
    """As with a bridge or a VLAN, all of whose interfaces are given."""
    frame = bytes(Frame(seq=SEQ, flags=SYN, client_port=fresh_port()))
    program, netns = servers.meter.programs.fd("tc_ingress"), servers.lab.server_netns
    interface = netns.run(lambda: socket.if_nametoindex(INTERFACE))
    verdict(program, frame)
    netns.run(lambda: verdict(program, frame, interface))
    assert servers.counts() == {}
    verdict(program, frame)
    assert servers.counts() == {"unanswered": 1}


def test_a_client_gives_up(clients: Sums) -> None:
    with spare_listener(clients.lab, FREE_PORT, backlog=0) as listener:
        filling = clients.lab.socket("client", socket.AF_INET)
        filling.connect(listener.getsockname())
        with clients.lab.socket("client", socket.AF_INET) as client:
            client.setblocking(False)
            with pytest.raises(BlockingIOError):
                client.connect(listener.getsockname())
            assert clients.counts() == {"opened": 1}
        clients.expect(opened=1, unanswered=1)
        filling.close()
    assert clients.handshakes()[0] == 1


def test_a_flood_of_syns(servers: Sums) -> None:
    """It takes no more room than there is, and nothing away from those who mean it."""
    program = servers.meter.programs.fd("tc_ingress")
    frame = bytearray(bytes(Frame(flags=SYN)))
    source = slice(ETHERNET + 12, ETHERNET + 16)
    for number in range(20_000):
        frame[source] = struct.pack("!I", 10 << 24 | number)
        verdict(program, bytes(frame))
        if number % 5_000 == 0:
            servers.lab.connect()
    assert servers.handshakes()[0] == 4
    assert servers.counts() == {"opened": 4}
    assert servers.meter.counted_all() == {"CONNECTIONS_OPENED": 4}

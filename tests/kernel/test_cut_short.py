# SPDX-License-Identifier: Apache-2.0
"""Requests without a whole response: how long they last, and who ended them."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
from conversation import Conversation
from frames import UpstreamWire, Wire, fresh_port
from lab import Pair, reset
from messages import OK, request, response
from meter import FREE_PORT, Meter, flags, stages, stamps, told_stages
from support.frames import ACK, FIN, RST, Frame
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag, Stamp
from otelbpf.ledger.sweeper import ACK_WAIT_NS, Sweeper

ENDINGS = (
    RequestFlag.PEER_RESET | RequestFlag.PEER_CLOSED
    | RequestFlag.LOCAL_RESET | RequestFlag.LOCAL_CLOSED
)  # fmt: skip
PARTIAL = response(headers={"Content-Length": "1000"}) + b"the first part"
SILENCE_S = 0.15
LONG_NS = 3_600_000_000_000

close = socket.socket.close


@dataclass(frozen=True)
class Silence:
    """What was seen around an end.

    Attributes:
        begin_ns: after the last byte before it; CLOCK_MONOTONIC.
        before_ns, after_ns: around the call that ended it.
    """

    begin_ns: int
    before_ns: int
    after_ns: int


def be_silent_and(act: Callable[[], object]) -> Silence:
    """Nothing for a while, and then the end."""
    begin_ns = time.monotonic_ns()
    time.sleep(SILENCE_S)
    before_ns = time.monotonic_ns()
    act()
    return Silence(begin_ns, before_ns, time.monotonic_ns())


def end_of(record: np.void) -> int:
    """When the request ended."""
    return told_stages(record)[-1].end_ktime_ns


def assert_lasted(record: np.void, silence: Silence) -> None:
    """The silence is the request's last stage, and none of the others has any of it."""
    assert not flags(record) & RequestFlag.REQUEST_ANSWERED
    assert end_of(record) == stamps(record)[Stamp.ENDED]
    assert silence.before_ns <= end_of(record)
    # The kernel may take some time to send what the call asked for, but not that much.
    assert end_of(record) - silence.after_ns < int(SILENCE_S * 1e9)
    told = told_stages(record)
    assert told[-1].name.endswith("_to_ended")
    assert told[-1].end_ktime_ns - told[-1].start_ktime_ns >= silence.before_ns - silence.begin_ns
    start_ns = min(stamps(record).values())
    assert sum(s.end_ktime_ns - s.start_ktime_ns for s in told) == end_of(record) - start_ns


@pytest.mark.guest
@pytest.mark.parametrize("answered", [b"", PARTIAL], ids=["nothing", "a part"])
@pytest.mark.parametrize(
    ("who", "how", "told"),
    [
        ("client", reset, RequestFlag.PEER_RESET),
        ("server", reset, RequestFlag.LOCAL_RESET),
        ("server", close, RequestFlag.LOCAL_CLOSED),
    ],
    ids=["client resets", "server resets", "server closes"],
)
def test_a_servers_request_lasts_until_it_was_ended(
    meter: Meter, who: str, how: Callable[[socket.socket], None], told: RequestFlag, answered: bytes
) -> None:
    pair = meter.lab.connect()
    pair.ask(request())
    if answered:
        pair.answer(answered)
    silence = be_silent_and(lambda: how(getattr(pair, who)))
    pair.close()
    record = meter.record()
    assert flags(record) & ENDINGS == told
    assert_lasted(record, silence)


def wait_for_fin(sock: socket.socket) -> None:
    """Until the other side is known to send nothing more."""
    wait_until(lambda: sock.recv(1, socket.MSG_PEEK) == b"", "a FIN came")


@pytest.mark.guest
def test_a_client_that_closes_first_has_ended_it_though_the_server_closes_later(
    meter: Meter,
) -> None:
    """Its FIN alone may be that of a client which still listens."""
    pair = meter.lab.connect()
    pair.ask(request())
    pair.client.close()
    wait_for_fin(pair.server)
    silence = be_silent_and(pair.server.close)
    record = meter.record()
    assert flags(record) & ENDINGS == RequestFlag.PEER_CLOSED
    assert_lasted(record, silence)


def test_a_client_that_only_listens_any_more_is_answered(meter: Meter) -> None:
    pair = meter.lab.connect()
    pair.ask(request())
    pair.client.shutdown(socket.SHUT_WR)
    wait_for_fin(pair.server)
    time.sleep(SILENCE_S)
    pair.answer(OK)
    record = meter.record()
    assert flags(record) & RequestFlag.REQUEST_ANSWERED
    assert Stamp.ENDED not in stamps(record)


def test_a_server_that_closes_first_has_ended_it_though_the_client_resets(meter: Meter) -> None:
    pair = meter.lab.connect()
    pair.ask(request())
    pair.answer(PARTIAL)
    silence = be_silent_and(lambda: pair.server.shutdown(socket.SHUT_WR))
    wait_for_fin(pair.client)
    reset(pair.client)
    record = meter.record()
    assert flags(record) & ENDINGS == RequestFlag.LOCAL_CLOSED
    assert_lasted(record, silence)


def test_a_request_that_crosses_the_servers_fin_ends_later_than_it_began(meter: Meter) -> None:
    """No answer could come any more when it came."""
    wire = Wire(meter)
    talk = Conversation(wire, Frame(client_port=fresh_port()))
    talk.ask(request(), 0)
    talk.answer(OK, 0)
    talk.ask(b"", len(request()), acknowledging=len(OK))
    meter.record()
    talk.answer(b"", len(OK), flags=FIN | ACK)
    talk.ask(request(target="/crossed"), len(request()), acknowledging=len(OK))
    before_ns = time.monotonic_ns()
    talk.answer(b"", len(OK) + 1, flags=RST)
    record = meter.record()
    assert record["http1"]["request_line"] == b"GET /crossed HTTP/1.1"
    assert flags(record) & ENDINGS == RequestFlag.LOCAL_CLOSED
    assert end_of(record) >= before_ns


@pytest.mark.guest
@pytest.mark.parametrize("answered", [b"", PARTIAL], ids=["nothing", "a part"])
@pytest.mark.parametrize(
    ("who", "how", "told"),
    [
        ("server", reset, RequestFlag.PEER_RESET),
        ("server", close, RequestFlag.PEER_CLOSED),
        ("client", reset, RequestFlag.LOCAL_RESET),
        ("client", close, RequestFlag.LOCAL_CLOSED),
    ],
    ids=["upstream resets", "upstream closes", "client resets", "client closes"],
)
def test_a_clients_request_lasts_until_it_was_ended(
    gateway: Meter, who: str, how: Callable[[socket.socket], None], told: RequestFlag,
    answered: bytes,
) -> None:  # fmt: skip
    pair = gateway.lab.connect()
    pair.exchange(request(), answered)
    silence = be_silent_and(lambda: how(getattr(pair, who)))
    pair.close()
    record = gateway.record()
    assert flags(record) & ENDINGS == told
    assert_lasted(record, silence)


def test_an_upstream_that_closes_first_has_ended_it_though_the_client_closes_later(
    gateway: Meter,
) -> None:
    """What it reads after that bounds no stage."""
    pair = gateway.lab.connect()
    pair.ask(request())
    pair.server.sendall(PARTIAL)
    silence = be_silent_and(pair.server.close)
    wait_until(lambda: not pair.client.recv(1 << 16, socket.MSG_DONTWAIT), "all was read")
    pair.client.close()
    record = gateway.record()
    assert flags(record) & ENDINGS == RequestFlag.PEER_CLOSED
    assert stamps(record)[Stamp.READ] > silence.before_ns
    assert silence.before_ns <= end_of(record) == stamps(record)[Stamp.ENDED]


def test_a_client_that_only_listens_any_more_hears_its_upstream(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(request())
    pair.client.shutdown(socket.SHUT_WR)
    wait_for_fin(pair.server)
    time.sleep(SILENCE_S)
    pair.answer(OK)
    record = gateway.record()
    assert flags(record) & RequestFlag.REQUEST_ANSWERED
    assert Stamp.ENDED not in stamps(record)


# ---- silence ----


def sweep(meter: Meter, after_ns: int, idle_ns: int = 1_000_000_000) -> None:
    """As the agent does, so much later."""
    sweeper = Sweeper(meter.programs, idle_ns)
    sweeper.sweep(time.monotonic_ns() + after_ns)


@pytest.mark.guest
def test_an_unanswered_request_is_kept_while_its_socket_is_open(meter: Meter) -> None:
    """It is one request, with its whole length, when it is answered one day."""
    pair = meter.lab.connect()
    pair.ask(request(target="/poll"))
    asked_ns = time.monotonic_ns()
    for hours in range(1, 4):
        sweep(meter, hours * LONG_NS)
    assert meter.records(0, others_in_flight=1).size == 0
    time.sleep(SILENCE_S)
    answered_ns = time.monotonic_ns()
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
    assert stages(record)[Stamp.READ, Stamp.WRITE] >= answered_ns - asked_ns


@pytest.mark.guest
def test_so_is_an_upstreams(gateway: Meter) -> None:
    pair = gateway.lab.connect()
    pair.ask(request(target="/model"))
    sweep(gateway, LONG_NS)
    assert gateway.records(0, others_in_flight=1).size == 0
    pair.answer(OK)
    assert flags(gateway.record()) & RequestFlag.REQUEST_ANSWERED


def test_half_a_head_is_kept_while_its_socket_is_open(meter: Meter) -> None:
    pair = meter.lab.connect()
    pair.ask(request(target="/half")[:-2])
    sweep(meter, LONG_NS)
    assert meter.in_flight() == 1
    pair.ask(b"\r\n")
    pair.answer(OK)
    assert meter.record()["http1"]["request_line"] == b"GET /half HTTP/1.1"


@pytest.fixture
def talk(meter: Meter) -> Conversation:
    """A server's connection that no socket is known of."""
    return Conversation(Wire(meter), Frame(client_port=fresh_port()))


def test_without_a_socket_silence_ends_it_at_its_last_byte(
    talk: Conversation, meter: Meter
) -> None:
    talk.ask(request(), 0)
    time.sleep(SILENCE_S)
    before_ns = time.monotonic_ns()
    talk.answer(PARTIAL, 0)
    after_ns = time.monotonic_ns()
    sweep(meter, 1_500_000_000, idle_ns=2_000_000_000)
    assert meter.records(0, others_in_flight=1).size == 0
    sweep(meter, 2_000_000_000, idle_ns=2_000_000_000)
    record = meter.record()
    assert flags(record) == RequestFlag.REQUEST_RECEIVED | RequestFlag.IDLE_TIMEOUT
    assert before_ns <= end_of(record) <= after_ns


@pytest.mark.parametrize(("ending", "told"), [
    (FIN | ACK, RequestFlag.LOCAL_CLOSED), (RST, RequestFlag.LOCAL_RESET),
])  # fmt: skip
def test_without_a_socket_the_servers_end_is_believed(
    talk: Conversation, meter: Meter, ending: int, told: RequestFlag
) -> None:
    talk.ask(request(), 0)
    before_ns = time.monotonic_ns()
    talk.answer(b"", 0, flags=ending)
    after_ns = time.monotonic_ns()
    sweep(meter, ACK_WAIT_NS + 1_000_000_000, idle_ns=LONG_NS)
    record = meter.record()
    assert flags(record) == RequestFlag.REQUEST_RECEIVED | told
    assert before_ns <= end_of(record) <= after_ns


def test_without_a_socket_the_clients_end_is_that_of_a_reset_only(
    talk: Conversation, meter: Meter
) -> None:
    talk.ask(request(), 0)
    talk.ask(b"", len(request()), flags=FIN | ACK)
    sweep(meter, ACK_WAIT_NS + 1_000_000_000, idle_ns=LONG_NS)
    assert meter.records(0, others_in_flight=1).size == 0
    before_ns = time.monotonic_ns()
    talk.ask(b"", len(request()) + 1, flags=RST)
    sweep(meter, ACK_WAIT_NS + 1_000_000_000, idle_ns=LONG_NS)
    record = meter.record()
    assert flags(record) == RequestFlag.REQUEST_RECEIVED | RequestFlag.PEER_CLOSED
    assert end_of(record) >= before_ns


def test_when_the_agent_stops_what_had_ended_is_told_and_the_rest_is_lost(
    talk: Conversation, meter: Meter
) -> None:
    talk.ask(request(target="/over"), 0)
    talk.answer(b"", 0, flags=FIN | ACK)
    pair = meter.lab.connect()
    pair.ask(request(target="/open"))
    sweeper = Sweeper(meter.programs, LONG_NS)
    sweeper.finish(time.monotonic_ns())
    assert meter.record()["http1"]["request_line"] == b"GET /over HTTP/1.1"
    assert meter.losses() == {Counter.LOST_STOPPED: 1}


# ---- upstreams whose reads are not seen ----


@pytest.fixture
def upstream(gateway: Meter) -> Conversation:
    """An upstream's connection that no socket is known of, as behind DNAT."""
    return Conversation(
        UpstreamWire(gateway), Frame(client_port=fresh_port(), server_port=FREE_PORT)
    )


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_upstreams_whose_reads_are_not_seen_end_by_what_was(
    upstream: Conversation, gateway: Meter, count: int
) -> None:
    asked, answered = request(target="/unread"), response(body=b"x" * 100)
    for number in range(count):
        upstream.ask(asked, number * len(asked), acknowledging=number * len(answered))
        upstream.answer(
            answered[:80], number * len(answered), acknowledging=(number + 1) * len(asked)
        )
        upstream.answer(
            answered[80:], number * len(answered) + 80, acknowledging=(number + 1) * len(asked)
        )
    sweep(gateway, ACK_WAIT_NS + 1_000_000_000, idle_ns=LONG_NS)
    records = gateway.records(count)
    assert gateway.losses() == {}
    for record in records:
        assert flags(record) & RequestFlag.REQUEST_ANSWERED
        at = stamps(record)
        assert not {Stamp.READ, Stamp.READ_LAST, Stamp.ENDED} & set(at)
        assert end_of(record) == at[Stamp.TC_LAST]


@pytest.mark.parametrize("count", [1, 16, 17, 40])
def test_multipath_tcp_is_such_an_upstream(gateway: Meter, count: int) -> None:
    """Its bytes are read from another socket than those which the network knows."""
    pair = connect_by_mptcp(gateway)
    for number in range(count):
        pair.client.sendall(request(target=f"/{number}"))
        assert pair.server.recv(1 << 16)
        pair.server.sendall(OK)
        assert pair.client.recv(1 << 16) == OK
    pair.close()
    records = gateway.records(count)
    assert gateway.losses() == {}
    for record in records:
        assert flags(record) & RequestFlag.REQUEST_ANSWERED
        assert Stamp.READ not in stamps(record)


def connect_by_mptcp(meter: Meter) -> Pair:
    """A connection whose both ends speak MPTCP."""
    ipproto_mptcp = 262
    host, port = "198.18.0.1", FREE_PORT

    def made() -> socket.socket:
        return socket.socket(socket.AF_INET, socket.SOCK_STREAM, ipproto_mptcp)

    try:
        listener = meter.lab.server_netns.run(made)
        client = meter.lab.client_netns.run(made)
    except OSError as error:
        pytest.skip(f"this kernel has no MPTCP: {error.strerror}")
    with listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen()
        client.connect((host, port))
        server, _ = listener.accept()
    return meter.lab.keep(Pair(client, server))

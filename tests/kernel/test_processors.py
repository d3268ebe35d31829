# SPDX-License-Identifier: Apache-2.0
"""Packets of one connection on several processors at the same time."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from conversation import Conversation
from frames import Wire, fresh_port
from lab import Pair, Worker, laboratory, on_processor, receive
from messages import CHUNKED, OK, chunk, request
from meter import WHOLE, Meter, flags, load
from support.frames import Frame

from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import MAPS, Counter, RequestFlag

CONNECTIONS = 4
REQUESTS = 150
#: Each is sent by itself: a segment where none is waiting.
PARTS = [request("POST", "/", CHUNKED), *[chunk(bytes(700))] * 300, b"0\r\n\r\n"]
LENGTH = sum(map(len, PARTS))
TIMEOUT_S = 60
# A process of its own, which does not wait for this one's threads.
_CLIENT = f"""
import socket, sys
parts = [{PARTS[0]!r}, *[{PARTS[1]!r}] * {len(PARTS) - 2}, {PARTS[-1]!r}]
with socket.socket(fileno=int(sys.argv[1])) as connection:
    for _ in range({REQUESTS}):
        for part in parts:
            connection.sendall(part)
        if connection.recv(1 << 16) != {OK!r}:
            raise SystemExit("another answer")
"""


def serve(pair: Pair) -> None:
    pair.server.settimeout(TIMEOUT_S)
    for _ in range(REQUESTS):
        receive(pair.server, LENGTH)
        pair.server.sendall(OK)


@contextlib.contextmanager
def asking(pair: Pair) -> Iterator[subprocess.Popen]:
    """The client's end in another process."""
    fd = pair.client.fileno()
    with subprocess.Popen([sys.executable, "-c", _CLIENT, str(fd)], pass_fds=[fd]) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
@pytest.mark.skipif(
    "QEMU TCG" in Path("/proc/cpuinfo").read_text(),
    reason="the processors are emulated in turns: each has more segments waiting than are kept",
)
def test_each_segment_is_read_once_and_in_its_turn(unattached: Meter) -> None:
    """What the sender sends by itself, and what an acknowledgement lets go, come by two ways."""
    with unattached.attached("lo"):
        pairs = [
            unattached.lab.connect("127.0.0.1", client_side="server") for _ in range(CONNECTIONS)
        ]
        with contextlib.ExitStack() as stack:
            for pair in pairs:
                stack.enter_context(Worker(lambda pair=pair: serve(pair)))
            clients = [stack.enter_context(asking(pair)) for pair in pairs]
            assert [client.wait(TIMEOUT_S) for client in clients] == [0] * CONNECTIONS
        records = unattached.records(CONNECTIONS * REQUESTS)
        unattached.lab.close_connections()
    assert unattached.losses() == {}
    for record in records:
        assert flags(record) == WHOLE | RequestFlag.REQUEST_CHUNKED
        assert record["request_bytes"] == LENGTH


ASKED = request(target="/early")
FIRST = 20
#: Connections on each processor, fewer in all than there are places, on 16 processors.
EACH = 20
#: Each of them has a socket.
FEW = Limits(connections=1_024, ring=1_024)


def begin(meter: Meter) -> Conversation:
    """A new connection whose request has begun. XDP, whose test run takes long, is left out."""
    talk = Conversation(Wire(meter), Frame(client_port=fresh_port()))
    talk.wire.take(talk.asked(ASKED[:FIRST], 0))
    return talk


def bring_early(talk: Conversation) -> None:
    """The request's end comes, and what precedes that does not yet."""
    talk.ask(ASKED[FIRST + 5 :], FIRST + 5)


def bring_rest(talk: Conversation) -> None:
    """The missing bytes come, and the request is answered."""
    talk.ask(ASKED[FIRST : FIRST + 5], FIRST)
    talk.answer(OK, 0, acknowledging=len(ASKED))
    talk.ask(b"", len(ASKED), acknowledging=len(OK))


def crowd_out(meter: Meter) -> None:
    """New connections take the places of all that there are."""
    for _ in range(2 * meter.programs.limits.connections):
        begin(meter)


def test_what_came_early_is_kept_however_many_processors_there_are(meter: Meter) -> None:
    """A map of the least recently used gives each processor 128 places, and takes others' away."""
    processors = sorted(os.sched_getaffinity(0))
    talks = []
    for processor in processors:
        with on_processor(processor):
            talks += [begin(meter) for _ in range(EACH)]
            for talk in talks[-EACH:]:
                bring_early(talk)
    for talk in talks:
        bring_rest(talk)
    records = meter.records(len(talks))
    assert meter.losses() == {}
    assert meter.counted(Counter.CONNECTIONS_CROWDED) == 0
    for record in records:
        assert flags(record) == WHOLE
        assert record["out_of_order"] == 1


def test_what_finds_no_room_is_counted_and_costs_nobody_else_anything(meter: Meter) -> None:
    room = MAPS["disorders"].max_entries
    talks = [begin(meter) for _ in range(room + 1)]
    for talk in talks:
        bring_early(talk)
    assert meter.counted(Counter.CONNECTIONS_CROWDED) == 1
    assert meter.losses() == {Counter.LOST_PARSER: 1}
    for talk in talks[:room]:
        bring_rest(talk)
    assert meter.counted(Counter.SUBMITTED) == room
    assert (meter.records(room)["out_of_order"] == 1).all()
    # All of it is free again.
    again = [begin(meter) for _ in range(room)]
    for talk in again:
        bring_early(talk)
    for talk in again:
        bring_rest(talk)
    meter.records(room)
    assert meter.counted(Counter.CONNECTIONS_CROWDED) == 1


def test_what_is_kept_of_a_connection_goes_with_it() -> None:
    """Here it makes room for others, and nobody was told that it has ended."""
    room = MAPS["disorders"].max_entries
    with laboratory() as lab, contextlib.closing(load(lab, FEW)) as meter, meter.attached():
        meter.begin()
        for _ in range(room):
            bring_early(begin(meter))
        crowd_out(meter)
        for _ in range(room // 2):
            bring_early(begin(meter))
        assert meter.counted(Counter.CONNECTIONS_CROWDED) == 0
        crowd_out(meter)
        meter.sweep()
        meter.end()

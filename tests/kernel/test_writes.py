# SPDX-License-Identifier: Apache-2.0
"""A write is one, however often the kernel comes by, and however little room there is."""

from __future__ import annotations

import socket
import time

import pytest
from lab import Pair, Worker, receive
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stages, stamps
from support.waiting import wait_until

from otelbpf.kernel.records import Stamp

PAUSE_S = 0.2
LARGE = response(body=bytes(4_000_000))


@pytest.mark.guest
def test_one_call_is_one_write_wherever_the_kernel_cuts_it(meter: Meter) -> None:
    """It copies into fragments of pages, at whose ends the tracepoint is passed once more."""
    answered = response(body=bytes(400))
    pair = meter.lab.connect()
    for _ in range(10):
        for _ in range(50):
            pair.exchange(request(), answered)
        for record in meter.records(50):
            assert Stamp.WRITE_LAST not in stamps(record)


def read_late(pair: Pair) -> None:
    """The client lets its window close, and reads all of it a while later."""
    wait_until(lambda: pair.client.recv(1, socket.MSG_PEEK) != b"", "the response began")
    time.sleep(PAUSE_S)
    receive(pair.client, len(LARGE))


@pytest.mark.guest
@pytest.mark.parametrize("blocking", [True, False], ids=["waits in the call", "comes back for it"])
def test_what_waits_for_room_was_handed_over_at_first(meter: Meter, blocking: bool) -> None:
    """Whose time that is: the client's, which does not read."""
    pair = meter.lab.connect()
    pair.ask(request())
    with Worker(lambda: read_late(pair)):
        if blocking:
            pair.server.sendall(LARGE)
        else:
            pair.server.setblocking(False)
            left = memoryview(LARGE)
            while left:
                try:
                    left = left[pair.server.send(left) :]
                except BlockingIOError:
                    time.sleep(0.001)
            pair.server.setblocking(True)
    record = meter.record()
    assert flags(record) == WHOLE
    assert Stamp.WRITE_LAST not in stamps(record)
    assert stages(record)[Stamp.TC_OUT, Stamp.TC_OUT_LAST] >= PAUSE_S * 1e9 / 2


def test_two_writes_are_two(meter: Meter) -> None:
    pair = meter.lab.connect()
    for _ in range(5):
        pair.ask(request())
        pair.server.sendall(OK[:-2])
        before_ns = time.monotonic_ns()
        pair.server.sendall(OK[-2:])
        receive(pair.client, len(OK))
        record = meter.record()
        assert stamps(record)[Stamp.WRITE] < before_ns < stamps(record)[Stamp.WRITE_LAST]

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
from lab import Pair, Worker, receive
from messages import CHUNKED, OK, chunk, request
from meter import WHOLE, Meter, flags

from otelbpf.kernel.records import RequestFlag

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

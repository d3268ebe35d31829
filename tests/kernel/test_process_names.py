# SPDX-License-Identifier: Apache-2.0
"""Whose a request is: what the kernel tells of the process that read it, or sent it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from lab import Pair, Worker, receive
from messages import OK, request
from meter import Meter

from otelbpf.host.cgroups import Cgroups, paths_of
from otelbpf.host.processes import Process, Running, cgroup_directory, look_at
from otelbpf.kernel.records import RequestRecordRow
from otelbpf.ledger.request import process_of

ASKED = request(target="/whose")
# Waits to be asked, answers, and ends when it is told to.
_SERVE = """
import os, socket, sys
sock, asked, answer = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2]), sys.argv[3]
while asked:
    asked -= len(sock.recv(asked))
sock.sendall(bytes.fromhex(answer))
sys.stdin.read()
"""


def whose(meter: Meter) -> Process:
    return process_of(RequestRecordRow(meter.record().item()))


def assert_is(told: Process, pid: int) -> Running:
    """It is this one, by all that /proc says of it while it runs."""
    running = look_at(pid, ())
    assert running is not None
    assert told.pid == pid
    assert running.is_still(told)
    assert told.comm == running.comm
    assert running.stack == told.stack != 0
    assert told.cgroup_id == Cgroups(cgroup_directory()).number(paths_of(running.cgroups).unified)
    return running


@pytest.fixture(params=["leader", "another thread"])
def in_thread(request: pytest.FixtureRequest) -> Callable[[Callable[[], object]], None]:
    """Calls a function in this thread or in another one: the process is the same."""

    def call(function: Callable[[], object]) -> None:
        if request.param == "leader":
            function()
            return
        with Worker(function):
            pass

    return call


def test_the_process_that_reads(
    meter: Meter, in_thread: Callable[[Callable[[], object]], None]
) -> None:
    pair = meter.lab.connect()
    pair.client.sendall(ASKED)
    in_thread(lambda: receive(pair.server, len(ASKED)))
    pair.answer(OK)
    assert_is(whose(meter), os.getpid())


def test_the_process_that_asks(
    gateway: Meter, in_thread: Callable[[Callable[[], object]], None]
) -> None:
    pair = gateway.lab.connect()
    in_thread(lambda: pair.client.sendall(ASKED))
    receive(pair.server, len(ASKED))
    pair.answer(OK)
    assert_is(whose(gateway), os.getpid())


@pytest.fixture
def other() -> Iterator[Callable[[str, int, str], subprocess.Popen[bytes]]]:
    """Starts another program that has a socket of this one's."""
    started = []

    def start(program: str, fd: int, *arguments: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", program, str(fd), *arguments]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[fd]))
        return started[-1]

    yield start
    for process in started:
        process.communicate(timeout=10)


def ask(pair: Pair) -> None:
    pair.client.sendall(ASKED)
    assert receive(pair.client, len(OK)) == OK


def test_another_program_has_another_stack(meter: Meter, other: Callable) -> None:
    pair = meter.lab.connect()
    server = other(_SERVE, pair.server.fileno(), str(len(ASKED)), OK.hex())
    ask(pair)
    told = whose(meter)
    running = assert_is(told, server.pid)
    own = look_at(os.getpid(), ())
    assert own is not None
    assert running.stack != own.stack
    server.communicate(timeout=10)
    assert look_at(server.pid, ()) is None


def test_a_fork_is_another_process_with_the_same_stack(meter: Meter) -> None:
    pair = meter.lab.connect()
    told_to_end, end = os.pipe()
    child = os.fork()
    if not child:
        os.close(end)
        receive(pair.server, len(ASKED))
        pair.server.sendall(OK)
        os.read(told_to_end, 1)
        os._exit(0)
    os.close(told_to_end)
    try:
        ask(pair)
        told = whose(meter)
        assert_is(told, child)
    finally:
        os.close(end)
        os.waitpid(child, 0)
    own = look_at(os.getpid(), ())
    assert own is not None
    assert told.stack == own.stack
    assert not own.is_still(told)


def test_who_reads_it_first_counts(meter: Meter, other: Callable) -> None:
    """And not who reads the rest of it, or answers."""
    pair = meter.lab.connect()
    pair.client.sendall(ASKED)
    receive(pair.server, 10)
    other(_SERVE, pair.server.fileno(), str(len(ASKED) - 10), OK.hex())
    assert receive(pair.client, len(OK)) == OK
    assert_is(whose(meter), os.getpid())


def test_what_nobody_has_read_is_nobodys(meter: Meter) -> None:
    """Whatever was in its slot before."""
    pair = meter.lab.connect()
    pair.exchange(ASKED, OK)
    meter.record()
    pair.client.sendall(ASKED)
    meter.lab.close_connections()
    assert whose(meter).pid == 0


def test_a_process_in_another_cgroup(meter: Meter, other: Callable) -> None:
    root = cgroup_directory()
    if root is None:
        pytest.skip("cgroup2 is not mounted")
    made = root / f"otelbpf-test-{os.getpid()}.service"
    made.mkdir()
    try:
        pair = meter.lab.connect()
        moves = f"open({str(made / 'cgroup.procs')!r}, 'w').write(str(__import__('os').getpid()))"
        server = other(f"{moves}\n{_SERVE}", pair.server.fileno(), str(len(ASKED)), OK.hex())
        ask(pair)
        told = whose(meter)
        assert_is(told, server.pid)
        assert told.cgroup_id == made.stat().st_ino
        assert Cgroups(root).path(told.cgroup_id) == f"/{made.name}"
        server.communicate(timeout=10)
    finally:
        made.rmdir()


def test_the_agents_own_view_is_this_kernels() -> None:
    """The stacks of programs are drawn by lot here: the tests above would not notice else."""
    assert Path("/proc/sys/kernel/randomize_va_space").read_text().strip() in ("1", "2")

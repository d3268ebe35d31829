# SPDX-License-Identifier: Apache-2.0
"""Which process it is, and what /proc says of it while it runs."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from proc import Proc, instead_of_proc

from otelbpf.host import processes as processes_module
from otelbpf.host.netns import find_netns
from otelbpf.host.processes import (
    Listeners,
    Process,
    executable_name,
    listening_ports,
    look_at,
    start_time,
    who_listens,
)

_TICK_NS = 10_000_000


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proc]:
    with instead_of_proc(tmp_path, monkeypatch) as made:
        yield made


def is_still(process: Process) -> bool:
    running = look_at(process.pid, ())
    return running is not None and running.is_still(process)


def test_what_is_told_of_a_process(proc: Proc) -> None:
    process = proc.add(
        11, "/usr/bin/python3.11", ("python3", "serve.py", ""),
        {"OTEL_SERVICE_NAME": "shop", "SECRET": "x", "OTEL_SERVICE_NAMES": "y"}, comm=b"se) rve",
        cgroup="0::/shop.service\n",
    )  # fmt: skip
    running = look_at(11, ("OTEL_SERVICE_NAME", "ABSENT"))
    assert running is not None
    assert running.comm == b"se) rve"
    assert running.executable == "python3.11"
    assert running.arguments == ("python3", "serve.py")
    assert running.variables == {"OTEL_SERVICE_NAME": "shop"}
    assert running.cgroups == "0::/shop.service\n"
    assert running.is_still(process)


def test_of_a_variable_that_is_there_twice_the_first_counts(proc: Proc) -> None:
    """As getenv() has it."""
    proc.add(11, "/shop")
    (proc.directory / "11/environ").write_bytes(b"A=first\0A=second\0B\0=\0C=\xff\0")
    running = look_at(11, ("A", "B", "C"))
    assert running is not None
    assert running.variables == {"A": "first", "C": "\\xff"}


@pytest.mark.parametrize("state", ["Z", "X"])
def test_who_has_ended_is_nobody(proc: Proc, state: str) -> None:
    proc.add(11, "/shop", state=state)
    assert look_at(11, ()) is None
    assert look_at(12, ()) is None


def test_another_process_with_the_same_pid(proc: Proc) -> None:
    first = proc.add(11, "/shop", start_boottime_ns=50_000_000_000)
    assert is_still(first)
    second = proc.add(11, "/shop", start_boottime_ns=50_010_000_000, stack=first.stack)
    assert is_still(second)
    assert not is_still(first)


@pytest.mark.parametrize("within_ns", [0, 1, 9_999_999])
def test_ticks_are_rounded_down(proc: Proc, within_ns: int) -> None:
    process = proc.add(11, "/shop", start_boottime_ns=50_000_000_000 + within_ns)
    assert is_still(process)
    assert not is_still(process._replace(start_boottime_ns=50_000_000_000 + _TICK_NS))
    assert not is_still(process._replace(start_boottime_ns=49_999_999_999))


@pytest.mark.parametrize("offset", [(100, 5_000_000), (-40, 0), (0, 9_999_999)])
def test_a_clock_of_another_time_namespace(proc: Proc, offset: tuple[int, int]) -> None:
    seconds, ns = offset
    (proc.directory / "self/timens_offsets").write_text(
        f"monotonic 7 0\nboottime {seconds:>10} {ns:>9}\n"
    )
    started_ns = 50_006_000_000
    proc.add(11, "/shop", start_boottime_ns=started_ns + seconds * 10**9 + ns, stack=5)
    assert is_still(Process(11, started_ns, 1, 5, b"shop"))
    assert not is_still(Process(11, started_ns - 2 * _TICK_NS, 1, 5, b"shop"))


def test_an_exec_runs_another_program_in_the_same_process(proc: Proc) -> None:
    before = proc.add(11, "/usr/bin/python3.11", ("python3", "a.py"))
    after = proc.add(11, "/usr/bin/python3.11", ("python3", "b.py"))
    assert before.start_boottime_ns == after.start_boottime_ns
    assert before.comm == after.comm
    assert is_still(after)
    assert not is_still(before)


def test_a_new_name_for_its_thread_makes_no_other_program(proc: Proc) -> None:
    before = proc.add(11, "/usr/bin/python3.11", comm=b"python3")
    proc.add(11, "/usr/bin/python3.11", comm=b"gunicorn: worke", stack=before.stack)
    assert is_still(before)


@pytest.mark.parametrize("how", ["no right to look", "setarch -R", "randomize_va_space=0"])
def test_where_the_stack_says_nothing_its_name_does(proc: Proc, how: str) -> None:
    executable = "" if how == "no right to look" else "/shop"
    personality = 0x0040000 if how == "setarch -R" else 0
    if how == "randomize_va_space=0":
        proc.randomize("0")
    process = proc.add(11, executable, comm=b"shop", personality=personality)
    assert is_still(process)
    assert not is_still(process._replace(comm=b"sh"))


_TELL_STACK = "print(open('/proc/self/stat').read().rpartition(')')[2].split()[25], flush=True)"
_TELL_STACKS = f"""
import os, sys
{_TELL_STACK}
if not os.fork():
    {_TELL_STACK}
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
os.wait()
"""


def test_this_kernel_hands_a_stack_on_at_fork_and_draws_another_at_exec() -> None:
    said = subprocess.run(
        [sys.executable, "-c", _TELL_STACKS, _TELL_STACK],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    parent, child, other = map(int, said)
    assert parent == child != other
    assert parent


def test_a_process_that_runs() -> None:
    """It waits, becomes another program, and is gone.

    Each program is looked at once it has said something: an exec() writes the stack's address last.
    """
    with subprocess.Popen(
        [sys.executable, "-c", "import os; input('ready\\n'); os.execv('/bin/cat', ['cat'])"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"OTEL_SERVICE_NAME": "shop"},
    ) as child:  # fmt: skip
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        running = look_at(child.pid, ("OTEL_SERVICE_NAME",))
        assert running is not None
        assert running.variables == {"OTEL_SERVICE_NAME": "shop"}
        assert running.start_ticks == start_time(child.pid)
        process = Process(child.pid, running.start_ticks * _TICK_NS, 0, running.stack, running.comm)
        assert is_still(process)
        child.stdin.write(b"\n")
        child.stdin.flush()
        while is_still(process):
            pass
        child.stdin.write(b"here\n")
        child.stdin.flush()
        assert child.stdout.readline() == b"here\n"
        later = look_at(child.pid, ())
        assert later is not None
        assert (later.start_ticks, later.executable) == (running.start_ticks, "cat")
        os.kill(child.pid, signal.SIGKILL)
        while look_at(child.pid, ()) is not None:
            pass


@contextlib.contextmanager
def listener(host: str) -> Iterator[int]:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as sock:
        yield sock.getsockname()[1]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::"])
def test_who_listens_on_a_port(host: str) -> None:
    netns = find_netns(None)
    with listener(host) as port, listener(host) as other:
        listeners = Listeners([port, other], netns)
        assert listeners.of(port) == listeners.of(other) == {os.getpid()}
        assert listeners.of_all_ports() == {os.getpid()}
        with socket.create_connection((host, port)):
            pass
        assert Listeners([other], netns).of(port) == frozenset()
    assert Listeners([port], netns).of(port) == frozenset()
    assert Listeners([], netns).of_all_ports() == frozenset()


def test_listeners_are_looked_for_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    monkeypatch.setattr(processes_module.time, "monotonic", lambda: now_s)
    netns = find_netns(None)
    with listener("127.0.0.1") as port:
        listeners = Listeners([port], netns)
        first = listeners.of(port)
        assert first == {os.getpid()}
    now_s += 0.9
    assert listeners.of(port) is first
    now_s += 0.2
    assert listeners.of(port) == frozenset()


# Listens on two ports, says which, and ends with its input.
_LISTENER = """
import socket, sys
one, other = socket.create_server(("127.0.0.1", 0)), socket.create_server(("::1", 0), family=10)
print(one.getsockname()[1], other.getsockname()[1], flush=True)
sys.stdin.read()
"""


def test_all_ports_that_others_listen_on() -> None:
    with (
        subprocess.Popen(
            [sys.executable, "-c", _LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process,
        socket.create_server(("127.0.0.1", 0)) as own,
    ):
        one, other = map(int, process.stdout.readline().split())
        found = who_listens(find_netns(None))
        assert listening_ports(find_netns(None)) == found.keys()
        assert (found[one], found[other]) == ({process.pid}, {process.pid})
        assert found[own.getsockname()[1]] == {os.getpid()}
        name = Path(os.readlink(f"/proc/{process.pid}/exe")).name
        assert executable_name(process.pid) == name
        process.stdin.close()
    assert one not in listening_ports(find_netns(None))

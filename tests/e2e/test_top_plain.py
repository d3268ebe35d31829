# SPDX-License-Identifier: Apache-2.0
"""`otelbpf top` into a pipe or a file, beside another agent, and whatever ends it."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from client import Client
from demo.processes import Process, running
from demo.receiver import Receiver
from servers import Server
from stack import (
    COUNT,
    OTELBPF,
    Ended,
    KernelIds,
    agent,
    assert_nothing_left,
    kernel_ids,
    otelbpf,
    to,
    wait_for_requests,
)
from support.namespaces import Network
from support.waiting import DEADLINE_S, wait_until


def options(net: Network, server: Server) -> tuple[str, ...]:
    return (
        "--interface",
        net.server.interface,
        "--netns",
        net.server.netns,
        "--port",
        str(server.port),
    )


@dataclass(frozen=True)
class Top:
    """A running `otelbpf top` that writes into files."""

    process: Process

    @property
    def stdout(self) -> str:
        """What it has printed so far."""
        return self.process.stdout.read_text()

    @property
    def ids(self) -> KernelIds:
        """What it has attached."""
        return kernel_ids(self.process.popen.pid)

    def wait_until(self, *texts: str) -> None:
        """Waits until it has printed these."""
        wait_until(
            lambda: all(text in self.stdout for text in texts),
            f"it printed {texts}",
            state=lambda: self.stdout + self.process.stderr.read_text(),
        )

    def end(self, number: signal.Signals) -> Ended:
        """Ends it with a signal."""
        code = self.process.stop(number)
        return Ended(code, self.stdout, self.process.stderr.read_text(), None)


@contextlib.contextmanager
def top(net: Network, server: Server, directory: Path, *arguments: str) -> Iterator[Top]:
    """Starts `otelbpf top`, and waits for its first table."""
    # Colours would be asked for in a pipe, too.
    environment = {"FORCE_COLOR": "1", "COLUMNS": "120"}
    command = [OTELBPF, "top", *options(net, server), *arguments]
    with running("top", command, directory, environment) as process:
        started = Top(process)
        started.wait_until("no requests yet")
        yield started


def ask(net: Network, server: Server, path: str = "/echo") -> None:
    with Client.of(net, server.port) as client:
        for _ in range(COUNT):
            client.ask(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_table_for_each_interval_and_one_of_all(
    net: Network, server: Server, tmp_path: Path, number: signal.Signals
) -> None:
    # It exports nothing, wherever it is told to.
    with top(net, server, tmp_path, "--interval", "0.5", "--sort", "time") as started:
        ids = started.ids
        assert ids.left() == ids
        ask(net, server)
        started.wait_until(f"seen {COUNT} = exported 0 + sampled out {COUNT} + lost 0")
        ended = started.end(number)
    assert ended.code == 0, ended.stderr
    assert "\x1b" not in ended.stdout + ended.stderr
    *intervals, everything = ended.stdout.split("otelbpf top  ")[1:]
    assert intervals
    for table in intervals:
        assert table.startswith(f"port {server.port} on {net.server.interface}; ")
    title, *lines = everything.splitlines()
    assert "; all " in title and title.endswith("s, by time")
    (route,) = (line for line in lines if line.startswith("GET /echo"))
    seconds = float(title.rpartition("all ")[2].split()[0])
    # It is told with two digits.
    assert float(route.split()[2]) == pytest.approx(COUNT / seconds, rel=0.1)
    assert route.split()[3] == "0%"
    assert ended.stderr.splitlines()[-1] == (
        f"otelbpf: seen {COUNT} = exported 0 + sampled out {COUNT} + lost 0"
    )
    assert_nothing_left(ids)


def test_it_stops_by_itself(net: Network, server: Server, tmp_path: Path) -> None:
    ended = otelbpf(tmp_path, "top", *options(net, server), "--duration", "0.3")
    assert ended.code == 0, ended.stderr
    # Less than an interval: only the table of all.
    assert ended.stdout.count("otelbpf top") == 1
    assert "; all 0.3 s" in ended.stdout
    assert ended.stderr.splitlines()[-1] == "otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0"


def test_nobody_reads_it_any_more(net: Network, server: Server) -> None:
    command = [OTELBPF, "top", *options(net, server), "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout and process.stderr
        assert process.stdout.readline().startswith(b"otelbpf top")
        ids = kernel_ids(process.pid)
        process.stdout.close()
        assert process.wait(DEADLINE_S) == 1
        lines = process.stderr.read().decode().splitlines()
    words = [line.partition(":")[2].split()[0] for line in lines]
    # Not on every kernel there is all that metrics could tell.
    assert [word for word in words if word != "absent"] == ["attaching,", "attached:"]
    assert_nothing_left(ids)


def test_it_cannot_write(net: Network, server: Server) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [OTELBPF, "top", *options(net, server), "--interval", "0.1"],
            stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE_S,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(
        "otelbpf: cannot write to standard output: No space left on device"
    )
    assert "Traceback" not in done.stderr


def test_beside_an_agent_that_exports(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Which has XDP, and keeps it: that is said, and both see all requests."""
    with agent(tmp_path, *options(net, server), environment=to(receiver)) as first:
        first.wait_ready()
        program = net.server.xdp_program()
        refused = otelbpf(tmp_path, "top", *options(net, server), "--xdp", "on")
        assert (refused.code, refused.stdout) == (2, "")
        assert "it has an XDP program already" in refused.stderr.splitlines()[-1]
        assert "Traceback" not in refused.stderr
        with top(net, server, tmp_path) as second:
            ids = second.ids
            ask(net, server)
            second.wait_until(f"seen {COUNT} =")
            wait_for_requests(receiver, COUNT)
            ended = second.end(signal.SIGTERM)
            assert ended.code == 0
            assert "GET /echo" in ended.stdout
            assert "absent from requests: nic" in ended.stderr
        assert_nothing_left(ids)
        assert net.server.xdp_program() == program
        first.stop().assert_clean(seen=COUNT)


def _handles(pid: int, number: signal.Signals) -> bool:
    """Has the process a handler of its own for this signal, and the one of top, not Python's?"""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = int(status.partition("SigCgt:")[2].split()[0], 16)
    return bool(caught >> number - 1 & 1 and caught >> signal.SIGWINCH - 1 & 1)


def test_before_it_is_attached(net: Network, server: Server, tmp_path: Path) -> None:
    command = [OTELBPF, "top", *options(net, server)]
    with running("top", command, tmp_path) as process:
        process.wait_until(lambda each: _handles(each.popen.pid, signal.SIGINT), DEADLINE_S)
        process.popen.send_signal(signal.SIGINT)
        assert process.popen.wait(DEADLINE_S) == 0
        said = process.stderr.read_text()
    assert said.splitlines()[-1] == "otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0"
    assert "attached" not in said

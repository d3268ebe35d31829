# SPDX-License-Identifier: Apache-2.0
"""What the measurements share: a load, an agent under it, and what the kernel counted of it."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from demo.processes import Process, running
from support.namespaces import Network, network

from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.btf import Btf

ROOT = Path(__file__).resolve().parents[1]
PORT = 8080
# Which nobody uses: what measures it sees what is none of its business.
OTHER_PORT = 8099
# These run for both ends of a connection where both are on one kernel.
_SOCKET_PROGRAMS = (
    "traced_tcp",
    "traced_queued",
    "traced_read",
    "traced_write",
    "probed_tcp",
    "probed_queued",
    "probed_read",
    "probed_write",
)
# Where the empty programs go: a tracepoint that each request passes.
_BASELINE_TRACEPOINT = "tcp_probe"
_BASELINES = {
    "empty": libbpf.RETURN_0,
    "clock": bytes([0x85, 0, 0, 0, 5, 0, 0, 0]) + libbpf.RETURN_0,  # calls bpf_ktime_get_ns()
}
CONNECTIONS = 8
# An agent that has nothing left to read is on the processor for less than this part of this time.
_IDLE_PART = 0.2
_IDLE_S = 0.5
_PASS_EVERY_PACKET = bytes([0xB7, 0, 0, 0, 2, 0, 0, 0]) + libbpf.RETURN_0[8:]
# Guests are slow.
_READY_TIMEOUT_S = 300.0
_STUCK_S = 1800.0
# For as long as its parent lives.
_SPIN = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): pass"

#: The agent that is measured.
COMMAND = ROOT / ".venv/bin/otelbpf"


@dataclass(frozen=True)
class Cost:
    """What the programs of one name did while the load ran.

    Attributes:
        ns: inside them, helpers included, and what counting itself takes.
    """

    runs: int
    ns: int

    @property
    def each(self) -> float:
        """ns of a run."""
        return self.ns / self.runs


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    requests: int
    per_second: float

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.requests / self.per_second


@dataclass(frozen=True)
class Agent:
    """A running agent.

    Attributes:
        sums: the file that will hold its sums.
        start_s: from its start until everything was attached.
    """

    process: Process
    sums: Path
    start_s: float

    @property
    def pid(self) -> int:
        return self.process.popen.pid

    def processor_s(self) -> float:
        """How long its threads have been on a processor so far."""
        return processor_s(self.pid)

    def catch_up(self) -> None:
        """Waits until it has nothing left to do."""
        used_s = self.processor_s()
        while True:
            time.sleep(_IDLE_S)
            before_s, used_s = used_s, self.processor_s()
            if used_s - before_s < _IDLE_PART * _IDLE_S:
                return

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """It catches up and is then off the processor; the programs go on, and requests wait."""
        self.catch_up()
        self.process.popen.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.popen.send_signal(signal.SIGCONT)

    def stop(self) -> dict[str, Any]:
        """Stops it in order; gives its sums."""
        self.process.stop(signal.SIGINT)
        return json.loads(self.sums.read_text())


@contextlib.contextmanager
def awake(*, asleep: bool) -> Iterator[None]:
    """No processor goes to sleep: on each one spins what gives way to everybody at once.

    One that sleeps has to be woken for each of the few things that a nearly idle agent does, and is
    slow for a while then. A virtual one is given back to its host meanwhile: that is what would be
    measured, and it differs from one hour to the next.

    Args:
        asleep: they may, as the option says.
    """
    spinning = []
    try:
        for processor in () if asleep else os.sched_getaffinity(0):
            spinner = subprocess.Popen([sys.executable, "-c", _SPIN, str(os.getpid())])
            spinning.append(spinner)
            os.sched_setscheduler(spinner.pid, os.SCHED_IDLE, os.sched_param(0))
            os.sched_setaffinity(spinner.pid, {processor})
        yield
    finally:
        for spinner in spinning:
            spinner.kill()
            spinner.wait()


def add_asleep(parser: argparse.ArgumentParser) -> None:
    """The option by which processors are not kept awake."""
    parser.add_argument(
        "--asleep", action="store_true",
        help="let idle processors go to sleep: what is measured then is above all how long it "
        "takes to wake them, which on a virtual machine is its host's doing",
    )  # fmt: skip


def processor_s(pid: int) -> float:
    """How long a process's threads have been on a processor so far."""
    files = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(file.read_text().split()[0]) for file in files) / 1e9


def resident_mib(pid: int, what: str = "VmRSS") -> float:
    """How much of a process is in memory, what it shares with the kernel included.

    Args:
        what: of it, as /proc/PID/status names it: RssAnon is what is its own.
    """
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"^{what}:\s+(\d+) kB$", status, re.MULTILINE)[1]) / 1024


@contextlib.contextmanager
def served(server: Callable[[Path], list[str | Path]]) -> Iterator[Network]:
    """Two network namespaces, and in one of them a server that listens at PORT.

    Args:
        server: gives the server's command; is given a directory for its files.
    """
    with network() as net, serving(net, server):
        yield net


@contextlib.contextmanager
def serving(
    net: Network, server: Callable[[Path], list[str | Path]], **environment: str
) -> Iterator[Process]:
    """That server, in a network that is there."""
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        command = [*net.server.enter(), *server(directory)]
        with running("server", command, directory, environment) as process:
            process.wait_until(lambda _: _listens(net), _READY_TIMEOUT_S)
            yield process


def _listens(net: Network) -> bool:
    try:
        net.client.call(
            lambda: socket.create_connection((net.server.ipv4, PORT), _READY_TIMEOUT_S).close()
        )
    except ConnectionRefusedError:
        return False
    return True


@contextlib.contextmanager
def stats_enabled() -> Iterator[None]:
    """The kernel counts what BPF programs do."""
    counting = libbpf.enable_run_counts()
    try:
        yield
    finally:
        os.close(counting)


def costs_of(pid: int | str) -> dict[str, Cost]:
    """By name, what the programs that a process holds have done while it was counted."""
    numbers = set()
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            found = re.search(r"^prog_id:\t(\d+)$", path.read_text(), re.MULTILINE)
        except FileNotFoundError:  # the one that lists this directory
            continue
        if found:
            numbers.add(int(found[1]))
    costs: dict[str, Cost] = {}
    for info in map(_info_of, numbers):
        if info.runs:
            before = costs.get(info.name, Cost(0, 0))
            costs[info.name] = Cost(before.runs + info.runs, before.ns + info.run_time_ns)
    return costs


def of_clients(passed_by: dict[str, Cost]) -> Cost:
    """What a client's sockets cost, by programs that pass the load by.

    On one kernel each second run of the sockets' programs is for one of them.
    """
    costs = [cost for name, cost in passed_by.items() if name in _SOCKET_PROGRAMS]
    return Cost(sum(cost.runs for cost in costs) // 2, sum(cost.ns for cost in costs) // 2)


def _info_of(program: int) -> bpf_info.ProgramInfo:
    fd = ctypes.CDLL("libbpf.so.1").bpf_prog_get_fd_by_id(program)
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    try:
        return bpf_info.program_info(fd)
    finally:
        os.close(fd)


def baseline(net: Network, seconds: int) -> dict[str, Cost]:
    """Empty programs at a place that every request passes, under the same load."""
    fds = []
    with Btf.of_kernel() as btf:
        target = btf.tracepoint_id(_BASELINE_TRACEPOINT)
    for name, code in _BASELINES.items():
        program = libbpf.load_program(
            name, code, libbpf.BPF_PROG_TYPE_TRACING, libbpf.BPF_TRACE_RAW_TP, target
        )
        fds += [program, libbpf.attach_tracing(program)]
    with stats_enabled():
        load(net, seconds)
    costs = costs_of("self")
    for fd in fds:
        os.close(fd)
    return costs


@contextlib.contextmanager
def empty_xdp(net: Network) -> Iterator[None]:
    """A program at the server's interface, native, that passes every packet on."""
    program = libbpf.load_program("empty", _PASS_EVERY_PACKET, libbpf.BPF_PROG_TYPE_XDP)
    link = net.server.call(
        lambda: libbpf.link_create(
            program,
            socket.if_nametoindex(net.server.interface),
            libbpf.BPF_XDP,
            libbpf.XDP_FLAGS_DRV_MODE,
        )
    )
    try:
        yield
    finally:
        os.close(link)
        os.close(program)


def load(
    net: Network, seconds: int, headers: Sequence[str] = (), script: Path | None = None
) -> Load:
    """Keep-alive requests, as many as there can be.

    Args:
        headers: lines of their heads, beside the request line and Host.
        script: of wrk's, in Lua.
    """
    answer = subprocess.run(
        [
            *net.client.enter(),
            "wrk",
            "-t1",
            f"-c{CONNECTIONS}",
            f"-d{seconds}s",
            *(part for line in headers for part in ("-H", line)),
            *(("-s", script) if script else ()),
            f"http://{net.server.ipv4}:{PORT}/hello",
        ],
        capture_output=True,
        text=True,
        check=True,
        timeout=_STUCK_S,
    ).stdout
    return Load(
        int(re.search(r"(\d+) requests in", answer)[1]),
        float(re.search(r"Requests/sec:\s+([\d.]+)", answer)[1]),
    )


def upload(net: Network, port: int, seconds: int) -> float:
    """Bytes a second that a server takes of one client which sends all it can."""
    taken = 0

    def take(listener: socket.socket) -> None:
        nonlocal taken
        with listener, listener.accept()[0] as connection:
            while n := len(connection.recv(1 << 20)):
                taken += n

    listener = net.server.call(lambda: socket.create_server(("", port)))
    server = threading.Thread(target=take, args=(listener,))
    server.start()
    client = net.client.call(lambda: socket.create_connection((net.server.ipv4, port)))
    data = bytes(1 << 20)
    with client:
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            client.sendall(data)
    server.join()
    return taken / (time.monotonic() - started)


@contextlib.contextmanager
def agent(net: Network, port: int, *options: str, **environment: str) -> Iterator[Agent]:
    """A running agent, which takes all stamps: XDP is on, unless the options say otherwise.

    Args:
        options: of `otelbpf run`, beyond those that say where to measure.
    """
    with tempfile.TemporaryDirectory() as directory:
        ready, sums = Path(directory, "ready"), Path(directory, "sums")
        command = [
            str(COMMAND),
            "run",
            "--netns",
            net.server.netns,
            "--interface",
            net.server.interface,
            "--port",
            str(port),
            "--xdp",
            "on",
            "--ready-file",
            str(ready),
            "--sums-file",
            str(sums),
            *options,
        ]
        none = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
        env = {**none, **environment}
        started = time.monotonic()
        with running("agent", command, Path(directory), env) as process:
            process.wait_until(lambda _: ready.exists(), _READY_TIMEOUT_S)
            yield Agent(process, sums, time.monotonic() - started)


def print_costs(costs: dict[str, Cost], requests: int, unit: str) -> None:
    """One line for each program, the dearest first, and their sum.

    Args:
        unit: what a nanosecond stands for.
    """
    print(f"    {'program':<16} runs a request  {unit + ' a run':>18}  {unit + ' a request':>22}")
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].ns):
        if cost.ns >= requests / 2:
            print(
                f"    {name:<16} {cost.runs / requests:14.2f}  {cost.each:18.0f}  "
                f"{cost.ns / requests:22.0f}"
            )
    runs, ns = (sum(getattr(c, field) for c in costs.values()) for field in ("runs", "ns"))
    print(f"    {'sum':<16} {runs / requests:14.2f}  {'':18}  {ns / requests:22.0f}")

# SPDX-License-Identifier: Apache-2.0
"""What the programs cost a request, and what becomes of requests at saturation.

    PYTHONPATH=examples .venv/bin/python bench/cost.py [--seconds 5]

Client and server share one kernel here, so the hooks run for the client's sockets too. What
that costs is found by a second run in which the programs look for another port: every run of
theirs is then for a socket that is not theirs.
"""

import argparse
import contextlib
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from demo.processes import running
from demo.topology import Topology, topology

from otelbpf import libbpf
from otelbpf.loader import import_bcc

ROOT = Path(__file__).resolve().parent.parent
PORT = 8080
OTHER_PORT = 8099
CONNECTIONS = 8
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")
# How long each agent took from its start until everything was attached, in seconds.
STARTS: list[float] = []
SOCKET_PROGRAMS = {
    "traced_tcp", "traced_queued", "traced_read", "traced_write",
}
# Where the empty programs go: a tracepoint that each request passes.
BASELINE_TRACEPOINT = "tcp_probe"
BASELINES = {
    "empty": "int empty(struct bpf_raw_tracepoint_args *ctx) { return 0; }",
    "clock": "int clock(struct bpf_raw_tracepoint_args *ctx) { return bpf_ktime_get_ns() == 1; }",
}


@dataclass(frozen=True)
class Cost:
    """What one program did while the load ran."""

    runs: int
    ns: int


@dataclass(frozen=True)
class Load:
    """What wrk saw."""

    requests: int
    per_second: float


@contextlib.contextmanager
def stats_enabled() -> Iterator[None]:
    before = STATS.read_text()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def costs_of(pid: int | str, names: dict[int, str] | None = None) -> dict[str, Cost]:
    """The run counts of all programs that a process holds."""
    if names is None:
        listed = subprocess.run(["bpftool", "-j", "prog", "show"], capture_output=True, check=True)
        names = {entry["id"]: entry.get("name", "?") for entry in json.loads(listed.stdout)}
    costs = {}
    for path in Path(f"/proc/{pid}/fdinfo").iterdir():
        try:
            lines = path.read_text().splitlines()
        except FileNotFoundError:  # the one that lists this directory
            continue
        fields = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        if "run_cnt" in fields and int(fields["run_cnt"]):
            name = names.get(int(fields["prog_id"]), "?")
            costs[name] = Cost(int(fields["run_cnt"]), int(fields["run_time_ns"]))
    return costs


def load(net: Topology, seconds: int) -> Load:
    answer = subprocess.run(
        [*net.client.enter(), "wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s",
         f"http://{net.server.ipv4}:{PORT}/hello"],
        capture_output=True, text=True, check=True, timeout=seconds + 30,
    ).stdout
    return Load(
        int(re.search(r"(\d+) requests in", answer)[1]),
        float(re.search(r"Requests/sec:\s+([\d.]+)", answer)[1]),
    )


@contextlib.contextmanager
def agent(net: Topology, port: int, *options: str, **environment: str) -> Iterator[tuple]:
    """A running agent; yields its process and the file that will hold its sums."""
    with tempfile.TemporaryDirectory() as directory:
        ready, sums = Path(directory, "ready"), Path(directory, "sums")
        command = [
            str(ROOT / ".venv/bin/otelbpf"), "run", "--netns", net.server.netns,
            "--interface", net.server.interface, "--port", str(port),
            "--ready-file", str(ready), "--sums-file", str(sums), *options,
        ]
        env = {"OTEL_TRACES_EXPORTER": "none", **environment}
        started = time.monotonic()
        with running("agent", command, Path(directory), env) as process:
            process.wait_until(lambda _: ready.exists(), 30)
            STARTS.append(time.monotonic() - started)
            yield process, sums


def table(costs: dict[str, Cost], requests: int) -> float:
    total = 0.0
    for name, cost in sorted(costs.items(), key=lambda item: -item[1].ns):
        each = cost.ns / requests
        total += each
        if each >= 0.5:
            print(f"    {name:<24} {cost.runs / requests:5.2f} runs  {cost.ns / cost.runs:6.0f} ns "
                  f"a run  {each:6.0f} ns a request")
    return total


def baseline(net: Topology, seconds: int) -> dict[str, Cost]:
    """Empty programs at a place that every request passes, under the same load."""
    bcc = import_bcc()
    os.environ["BCC_KERNEL_SOURCE"] = str(ROOT / "bpf/shim")
    bpf = bcc.BPF(text="\n".join(BASELINES.values()))
    fds = []
    for name in BASELINES:
        program = bpf.load_func(name, bcc.BPF.RAW_TRACEPOINT)
        fds.append(libbpf.raw_tracepoint_open(BASELINE_TRACEPOINT, program.fd))
    with stats_enabled():
        load(net, seconds)
    costs = {name: cost for name, cost in costs_of("self").items() if name in BASELINES}
    for fd in fds:
        os.close(fd)
    return costs


def cost_of_a_request(net: Topology, seconds: int) -> None:
    empty = {name: cost.ns / cost.runs for name, cost in baseline(net, seconds).items()}
    print(f"  an empty raw tracepoint program: {empty['empty']:.0f} ns a run; one that reads the "
          f"clock: {empty['clock']:.0f} ns")
    tables = {}
    for what, port in (("measured", PORT), ("passed by: another port is measured", OTHER_PORT)):
        with agent(net, port, OTEL_TRACES_SAMPLER="always_off") as (process, _), stats_enabled():
            done = load(net, seconds)
            costs = costs_of(process.popen.pid)
        print(f"\n  {what} ({done.requests} requests)")
        total = table(costs, done.requests)
        print(f"    {'sum':<24} {sum(c.runs for c in costs.values()) / done.requests:5.2f} runs  "
              f"{'':>15} {total:6.0f} ns a request")
        tables[what] = {name: cost.ns / done.requests for name, cost in costs.items()}
    measured, passed_by = tables.values()
    # The socket hooks run for both ends. When they pass by, half of their time was the client's.
    clients = sum(ns / 2 for name, ns in passed_by.items() if name in SOCKET_PROGRAMS)
    own = sum(measured.values()) - clients
    print(f"\n  one request's own share: about {own:.0f} ns, {own / empty['empty']:.0f} times an "
          "empty program")


def saturation(net: Topology, seconds: int) -> None:
    print("\nat saturation (client, server and agent share "
          f"{os.cpu_count()} processors)")
    without = load(net, seconds)
    print(f"  no agent                      {without.per_second:8.0f} requests a second")
    for what, options, environment in (
        ("all sampled out", (), {"OTEL_TRACES_SAMPLER": "always_off"}),
        ("1 in 100", (),
         {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"}),
        ("all, stages as attributes", ("--stages", "attributes"), {}),
    ):
        with agent(net, PORT, *options, **environment) as (process, sums_file):
            done = load(net, seconds)
            process.stop(signal.SIGINT)
            sums = json.loads(sums_file.read_text())
        print(f"  {what:<29} {done.per_second:8.0f} requests a second, "
              f"{done.per_second / without.per_second:4.0%}; seen {sums['seen']}, exported "
              f"{sums['exported']}, sampled out {sums['sampled_out']}, lost {sums['lost'] or 0}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5, help="of each load (default: 5)")
    seconds = parser.parse_args().seconds
    print(f"kernel {platform.release()}, {os.cpu_count()} processors; wrk with {CONNECTIONS} "
          f"keep-alive connections, {seconds} s a load")
    with topology() as net, tempfile.TemporaryDirectory() as directory:
        server = [*net.server.enter(), sys.executable, str(ROOT / "bench/asyncio_server.py"),
                  str(PORT)]
        with running("server", server, Path(directory)) as process:
            process.wait_until(lambda p: p.printed_line(), 15)
            print("\nBPF time of a request")
            cost_of_a_request(net, seconds)
            saturation(net, seconds)
    print(f"\nfrom start to attached: {min(STARTS):.2f} to {max(STARTS):.2f} s, "
          f"{len(STARTS)} starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

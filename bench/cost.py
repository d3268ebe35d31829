# SPDX-License-Identifier: Apache-2.0
"""What the programs cost a request, and what becomes of requests at saturation.

    .venv/bin/python bench/cost.py [--seconds 5]

Client and server share one kernel here, so the hooks run for the client's sockets too. What
that costs is found by a second run in which the programs look for another port: every run of
theirs is then for a socket that is not theirs.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
from pathlib import Path

from measure import (
    CONNECTIONS,
    PORT,
    ROOT,
    Cost,
    Topology,
    agent,
    costs_of,
    load,
    print_costs,
    served,
    stats_enabled,
)

from otelbpf import libbpf
from otelbpf.btf import Btf

OTHER_PORT = 8099
# How long each agent took from its start until everything was attached, in seconds.
STARTS: list[float] = []
SOCKET_PROGRAMS = ("traced_tcp", "traced_queued", "traced_read", "traced_write",
                   "probed_tcp", "probed_queued", "probed_read", "probed_write")
# Where the empty programs go: a tracepoint that each request passes.
BASELINE_TRACEPOINT = "tcp_probe"
BASELINES = {
    "empty": libbpf.RETURN_0,
    "clock": bytes([0x85, 0, 0, 0, 5, 0, 0, 0]) + libbpf.RETURN_0,  # calls bpf_ktime_get_ns()
}


def baseline(net: Topology, seconds: int) -> dict[str, Cost]:
    """Empty programs at a place that every request passes, under the same load."""
    fds = []
    with Btf.of_kernel() as btf:
        target = btf.tracepoint_id(BASELINE_TRACEPOINT)
    for name, code in BASELINES.items():
        program = libbpf.load_program(name, code, libbpf.BPF_TRACE_RAW_TP, target)
        fds += [program, libbpf.attach_tracing(program)]
    with stats_enabled():
        load(net, seconds)
    costs = costs_of("self")
    for fd in fds:
        os.close(fd)
    return costs


def cost_of_a_request(net: Topology, seconds: int) -> None:
    empty = {name: cost.ns / cost.runs for name, cost in baseline(net, seconds).items()}
    print(f"  an empty tracepoint program: {empty['empty']:.0f} ns a run; one that reads the "
          f"clock: {empty['clock']:.0f} ns")
    tables = {}
    for what, port in (("measured", PORT), ("passed by: another port is measured", OTHER_PORT)):
        with agent(net, port, OTEL_TRACES_SAMPLER="always_off") as measuring, stats_enabled():
            STARTS.append(measuring.start_s)
            done = load(net, seconds)
            costs = costs_of(measuring.pid)
        print(f"\n  {what} ({done.requests} requests)")
        print_costs(costs, done.requests, "ns")
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
        with agent(net, PORT, *options, **environment) as measuring:
            STARTS.append(measuring.start_s)
            done = load(net, seconds)
            sums = measuring.stop()
        print(f"  {what:<29} {done.per_second:8.0f} requests a second, "
              f"{done.per_second / without.per_second:4.0%}; seen {sums['seen']}, exported "
              f"{sums['exported']}, sampled out {sums['sampled_out']}, lost {sums['lost'] or 0}")


def asyncio_server(_: Path) -> list[str | Path]:
    return [sys.executable, ROOT / "bench/asyncio_server.py", str(PORT)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5, help="of each load (default: 5)")
    seconds = parser.parse_args().seconds
    print(f"kernel {platform.release()}, {os.cpu_count()} processors; wrk with {CONNECTIONS} "
          f"keep-alive connections, {seconds} s a load", flush=True)
    with served(asyncio_server) as net:
        print("\nBPF time of a request")
        cost_of_a_request(net, seconds)
        saturation(net, seconds)
    print(f"\nfrom start to attached: {min(STARTS):.2f} to {max(STARTS):.2f} s, "
          f"{len(STARTS)} starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())

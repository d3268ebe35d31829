# SPDX-License-Identifier: Apache-2.0
"""What the programs cost a request, and what becomes of requests at saturation.

    .venv/bin/python bench/cost.py [--seconds 5]

Client and server share one kernel here, so the hooks run for the client's sockets too. What
that costs is found by a second run in which the programs look for another port: every run of
theirs is then for a socket that is not theirs.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import sys
from pathlib import Path

from measure import (
    CONNECTIONS,
    OTHER_PORT,
    PORT,
    ROOT,
    Network,
    agent,
    baseline,
    costs_of,
    load,
    of_clients,
    print_costs,
    served,
    stats_enabled,
    upload,
)

# How long each agent took from its start until everything was attached, in seconds.
STARTS: list[float] = []


def cost_of_a_request(net: Network, seconds: int) -> None:
    empty = {name: cost.each for name, cost in baseline(net, seconds).items()}
    print(
        f"  an empty tracepoint program: {empty['empty']:.0f} ns a run; one that reads the "
        f"clock: {empty['clock']:.0f} ns"
    )
    counted = []
    for what, port in (("measured", PORT), ("passed by: another port is measured", OTHER_PORT)):
        with agent(net, port, OTEL_TRACES_SAMPLER="always_off") as measuring, stats_enabled():
            STARTS.append(measuring.start_s)
            done = load(net, seconds)
            costs = costs_of(measuring.pid)
        print(f"\n  {what} ({done.requests} requests)")
        print_costs(costs, done.requests, "ns")
        counted.append((costs, done.requests))
    (measured, requests), (passed_by, others) = counted
    own = sum(cost.ns for cost in measured.values()) / requests - of_clients(passed_by).ns / others
    print(
        f"\n  one request's own share: about {own:.0f} ns, {own / empty['empty']:.0f} times an "
        "empty program"
    )


def saturation(net: Network, seconds: int) -> None:
    print(f"\nat saturation (client, server and agent share {os.cpu_count()} processors)")
    without = load(net, seconds)
    print(f"  no agent                      {without.per_second:8.0f} requests a second")
    for what, options, environment in (
        ("all sampled out", (), {"OTEL_TRACES_SAMPLER": "always_off"}),
        (
            "1 in 100",
            (),
            {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01"},
        ),
        ("all, stages as attributes", ("--stages", "attributes"), {}),
    ):
        with agent(net, PORT, *options, **environment) as measuring:
            STARTS.append(measuring.start_s)
            done = load(net, seconds)
            sums = measuring.stop()
        print(
            f"  {what:<29} {done.per_second:8.0f} requests a second, "
            f"{done.per_second / without.per_second:4.0%}; seen {sums['seen']}, exported "
            f"{sums['exported']}, sampled out {sums['sampled_out']}, lost {sums['lost'] or 0}"
        )


def bulk(net: Network, seconds: int) -> None:
    """Bytes sent to a port that is not measured, over the interface that is."""
    print("\none connection's bytes to a port that is not measured, over the same veth")
    without = None
    for what, options in (
        ("no agent", None),
        ("--xdp on", ()),
        ("--xdp auto", ("--xdp", "auto")),
    ):
        with contextlib.ExitStack() as stack:
            if options is not None:
                stack.enter_context(agent(net, PORT, *options))
            rate = upload(net, OTHER_PORT, seconds)
        without = without or rate
        print(f"  {what:<29} {rate / 1e6:8.0f} MB/s, {rate / without:4.0%}")


def asyncio_server(_: Path) -> list[str | Path]:
    return [sys.executable, ROOT / "bench/asyncio_server.py", str(PORT)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=5, help="of each load (default: 5)")
    seconds = parser.parse_args().seconds
    print(
        f"kernel {platform.release()}, {os.cpu_count()} processors; wrk with {CONNECTIONS} "
        f"keep-alive connections, {seconds} s a load",
        flush=True,
    )
    with served(asyncio_server) as net:
        print("\nBPF time of a request")
        cost_of_a_request(net, seconds)
        saturation(net, seconds)
        bulk(net, seconds)
    print(
        f"\nfrom start to attached: {min(STARTS):.2f} to {max(STARTS):.2f} s, {len(STARTS)} starts"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

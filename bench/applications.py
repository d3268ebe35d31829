# SPDX-License-Identifier: Apache-2.0
"""What tracing costs those who are traced: inside the application, and by otelbpf outside it.

    .venv/bin/python bench/applications.py [--only service|latency]

service: processor time of a FastAPI service under uvicorn, for each request at a steady rate:
alone, started by `opentelemetry-instrument`, and with otelbpf beside it. Both send all spans to
receivers that throw them away. What otelbpf's programs take of the service's own time is in the
service's; the agent's is told beside it.

latency: how long nginx takes to answer under half of the load that it can bear, without an agent
and with one that sends all spans, in turns. h2load (Debian: nghttp2-client) asks at the same rate
each time, by its clock.

Meanwhile no processor goes to sleep, unless --asleep says so.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import numpy as np
from export import ask, receiver
from instructions import nginx
from measure import (
    PORT,
    ROOT,
    Agent,
    Network,
    add_asleep,
    agent,
    awake,
    network,
    processor_s,
    served,
    serving,
)

_WARM_UP_S = 2.0
# A batch waits no longer for its requests: otelbpf's, and the SDK's.
_AGENT_REST_S, _SDK_REST_S = 2.5, 6.0
_PACKAGES = ("fastapi", "uvicorn", "opentelemetry-sdk")
# At half of the load some of these are idle at any time.
_CONNECTIONS = 100


class Used(NamedTuple):
    """Microseconds of a processor, a request."""

    service: float
    agent: float = 0.0


def service(directory: Path) -> list[str | Path]:
    return [sys.executable, ROOT / "bench/fastapi_service.py", str(PORT)]


def instrumented(directory: Path) -> list[str | Path]:
    return [ROOT / ".venv/bin/opentelemetry-instrument", *service(directory)]


def alone(net: Network, rate: int, seconds: float) -> Used:
    with serving(net, service) as process:
        return _asked(net, rate, seconds, process.popen.pid)


def inside(net: Network, rate: int, seconds: float) -> Used:
    nothing_else = {"OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"}
    came: list[None] = []
    with (
        receiver("grpc", net.server, lambda: came.append(None)) as variables,
        serving(net, instrumented, **nothing_else, **variables) as process,
    ):
        used = _asked(net, rate, seconds, process.popen.pid)
    if not came:
        raise RuntimeError("the application has sent no spans: is its instrumentation installed?")
    return used


def beside(net: Network, rate: int, seconds: float) -> Used:
    with (
        receiver("grpc") as variables,
        serving(net, service) as process,
        agent(net, PORT, **variables) as measuring,
    ):
        used = _asked(net, rate, seconds, process.popen.pid, measuring)
        sums = measuring.stop()
    if sums["lost"]:
        raise RuntimeError(f"the agent has lost requests: {sums['lost']}")
    return used


def _asked(
    net: Network, rate: int, seconds: float, pid: int, measuring: Agent | None = None
) -> Used:
    """What the service, and the agent, use for requests."""
    ask(net, rate, _WARM_UP_S)
    time.sleep(_SDK_REST_S)
    of_service_s = processor_s(pid)
    of_agent_s = measuring.processor_s() if measuring else 0.0
    requests = ask(net, rate, seconds)
    time.sleep(_AGENT_REST_S)
    if measuring:
        of_agent_s = measuring.processor_s() - of_agent_s
    time.sleep(_SDK_REST_S - _AGENT_REST_S)
    of_service_s = processor_s(pid) - of_service_s
    return Used(of_service_s / requests * 1e6, of_agent_s / requests * 1e6)


def services(rate: int, seconds: float, rounds: int) -> None:
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _PACKAGES)
    print(
        f"{versions}; {rate} requests a second for {seconds:.0f} s; us of a processor a request, "
        f"median of {rounds} rounds (range)",
        flush=True,
    )
    ways = {"alone": alone, "opentelemetry-instrument": inside, "otelbpf, beside it": beside}
    found: dict[str, list[Used]] = {name: [] for name in ways}
    with network() as net:
        for _ in range(rounds):
            for name, way in ways.items():
                found[name].append(way(net, rate, seconds))
    without = statistics.median(used.service for used in found["alone"])
    for name, all_used in found.items():
        of_service = [used.service for used in all_used]
        of_agent = [used.agent for used in all_used]
        added = statistics.median(of_service) - without
        print(
            f"  {name:<26}service {_spread(of_service, 0)}, {added:+5.0f}; "
            f"agent {_spread(of_agent, 0)}; {added + statistics.median(of_agent):+5.0f} in all"
        )


class Paced(NamedTuple):
    """How fast the answers came, and to how many requests a second."""

    per_second: float
    p50_us: float
    p99_us: float


def paced(net: Network, seconds: int, rate: float | None) -> Paced:
    """Asks so many times a second; None: as fast as it is answered."""
    with tempfile.NamedTemporaryFile() as log:
        paces = [] if rate is None else ["--rps", f"{rate / _CONNECTIONS:.3f}"]
        subprocess.run(
            [
                *net.client.enter(), "h2load", "--h1", "-t1", f"-c{_CONNECTIONS}", f"-D{seconds}",
                *paces, f"--log-file={log.name}", f"http://{net.server.ipv4}:{PORT}/hello",
            ],
            stdout=subprocess.DEVNULL, check=True,
        )  # fmt: skip
        # Of each request: when it was sent, the status, and after how long it was answered.
        _, statuses, took_us = np.loadtxt(log.name, np.int64, unpack=True)
    if (statuses != HTTPStatus.OK).any():
        raise RuntimeError("nginx has not answered all with 200")
    p50_us, p99_us = np.quantile(took_us, (0.5, 0.99))
    return Paced(len(took_us) / seconds, p50_us, p99_us)


def latency(seconds: int, rounds: int) -> None:
    with served(nginx) as net:
        paced(net, 1, None)
        most = paced(net, seconds, None).per_second
        print(
            f"nginx answers {most:.0f} requests a second at the most; {most / 2:.0f} a second by "
            f"{_CONNECTIONS} connections, {seconds} s a load, {rounds} of each in turns; median "
            "(range)",
            flush=True,
        )
        found: dict[str, list[Paced]] = {"no agent": [], "all spans sent": []}
        for _ in range(rounds):
            found["no agent"].append(paced(net, seconds, most / 2))
            with receiver("grpc") as variables, agent(net, PORT, "--xdp", "auto", **variables):
                found["all spans sent"].append(paced(net, seconds, most / 2))
    for name, all_seen in found.items():
        rate, p50_us, p99_us = zip(*all_seen, strict=True)
        print(
            f"  {name:<16}{_spread(rate, 0)} requests a second; p50 {_spread(p50_us, 0)} us; "
            f"p99 {_spread(p99_us, 0)} us"
        )
    pairs = zip(*found.values(), strict=True)
    ratios = [with_it.p99_us / without.p99_us for without, with_it in pairs]
    print(f"  p99 with it, of that without just before: {_spread(ratios, 2)}")


def _spread(values: Sequence[float], digits: int) -> str:
    median, least, most = statistics.median(values), min(values), max(values)
    return f"{median:.{digits}f} ({least:.{digits}f} to {most:.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=["service", "latency"])
    parser.add_argument("--seconds", type=int, default=10, help="of each load (default: 10)")
    parser.add_argument("--rounds", type=int, default=5, help="of each (default: 5)")
    parser.add_argument("--rate", type=int, default=1_000, help="of requests to the service")
    add_asleep(parser)
    given = parser.parse_args()
    print(f"kernel {platform.release()}, {os.cpu_count()} processors")
    with awake(asleep=given.asleep):
        if given.only != "latency":
            services(given.rate, given.seconds, given.rounds)
        if given.only != "service":
            latency(given.seconds, given.rounds)


if __name__ == "__main__":
    main()

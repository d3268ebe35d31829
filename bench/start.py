# SPDX-License-Identifier: Apache-2.0
"""How long it takes from the command to the ready file: all is attached then.

    chrt --rr 1 .venv/bin/python bench/start.py

starts an agent with the exporter `none` several times by each way to load the programs, and tells
the best. With a real-time priority other work on the machine does not count, but for what it does
to caches and to the kernel's grace periods. Meanwhile no processor goes to sleep, unless --asleep
says so.
"""

from __future__ import annotations

import argparse
import os
import platform

from cost import asyncio_server
from measure import PORT, Network, add_asleep, agent, awake, served

# Python's bytecode is kept, as it is by who installs otelbpf; and any port for Prometheus will do.
_AS_INSTALLED = {"PYTHONDONTWRITEBYTECODE": ""}
_METRICS = {"OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": "19464"}
#: Options beside the port's, and variables.
CONFIGURATIONS = {
    "server": ((), {}),
    "server, metrics": ((), _METRICS),
    "server, upstreams, metrics": (("--client-port", "9000"), _METRICS),
}


def best(
    net: Network, times: int, loader: str, options: tuple[str, ...], variables: dict[str, str]
) -> float:
    """Seconds until it was ready, the least of `times`."""
    took_s = []
    for _ in range(times):
        given = ("--loader", loader, *options)
        with agent(net, PORT, *given, **_AS_INSTALLED, **variables) as running:
            took_s.append(running.start_s)
    return min(took_s)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=5, help="(default: 5)")
    add_asleep(parser)
    given = parser.parse_args()
    times = given.times
    print(f"kernel {platform.release()}, {os.cpu_count()} processors; the best of {times}")
    with awake(asleep=given.asleep), served(asyncio_server) as net:
        for name, (options, variables) in CONFIGURATIONS.items():
            told = ", ".join(
                f"{loader} {best(net, times, loader, options, variables):.2f} s"
                for loader in ("object", "bcc")
            )
            print(f"  {name:<28} {told}", flush=True)


if __name__ == "__main__":
    main()

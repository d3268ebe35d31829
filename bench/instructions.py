# SPDX-License-Identifier: Apache-2.0
"""How many instructions the programs run for a request, by each way to attach them.

    .venv/bin/python bench/instructions.py 6.12 6.1

boots each of these kernels in QEMU, one after the other. In such a guest an instruction takes a
nanosecond, so the kernel's statistics of the time in BPF programs are the number of instructions
that they ran, helpers included, and what counting them takes itself. Client and server share the
guest's kernel, so the hooks of the client's sockets are counted too. Both are told apart: by an
empty program, and by an agent that measures another port.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from measure import (
    CONNECTIONS,
    OTHER_PORT,
    PORT,
    ROOT,
    Cost,
    Load,
    Topology,
    agent,
    baseline,
    costs_of,
    load,
    of_clients,
    print_costs,
    served,
    stats_enabled,
)

from otelbpf.btf import Btf
from otelbpf.hooks import FORCEABLE, Choice, choose, without

GUEST_TIMEOUT_S = 3600
# What becomes of the requests: options and environment.
NO_SPANS = {"OTEL_TRACES_SAMPLER": "always_off"}
NO_METRICS = {"OTEL_METRICS_EXPORTER": "none"}
# As on every veth: native XDP has a price of its own there, since it copies each packet for it.
WITHOUT_XDP = ("--xdp", "auto")
FATES = {
    "added up": ((), {**NO_SPANS, "OTEL_METRICS_EXPORTER": "prometheus"}),
    "kept": ((), NO_METRICS),
    "kept, no XDP": (WITHOUT_XDP, NO_METRICS),
    "sampled out": ((), {**NO_SPANS, **NO_METRICS}),
    "sampled out, no XDP": (WITHOUT_XDP, {**NO_SPANS, **NO_METRICS}),
}
NGINX = """\
worker_processes 1; daemon off; user root; pid {directory}/pid; error_log stderr;
events {{ worker_connections 64; }}
http {{
    access_log off; keepalive_requests 1000000000;
    client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
    uwsgi_temp_path {directory}; scgi_temp_path {directory};
    server {{ listen {port}; location / {{ return 200 "hello world\\n"; }} }}
}}
"""


@dataclass(frozen=True)
class Measured:
    """What one way to attach cost, and what became of the requests.

    Attributes:
        costs: of each program, in instructions.
        counted: the load under which they were counted.
        load: one without counting.
        agent_s: of that time the agent itself was on the processor.
        absent: the stamps that it does not give.
    """

    name: str
    costs: dict[str, Cost]
    counted: Load
    load: Load
    agent_s: float
    absent: list[str]

    @property
    def instructions(self) -> float:
        """Of all programs, a request."""
        return sum(cost.ns for cost in self.costs.values()) / self.counted.requests

    @property
    def runs(self) -> float:
        """Of all programs, a request."""
        return sum(cost.runs for cost in self.costs.values()) / self.counted.requests

    @property
    def beside_the_agent(self) -> float:
        """Requests a second of the time that the agent itself left to all others."""
        return self.load.requests / (self.load.seconds - self.agent_s)

    def clients(self, counting: float) -> float:
        """Of programs that pass this load by, a request: what the client's sockets take.

        Args:
            counting: what that takes, a run, and is left out.
        """
        cost = of_clients(self.costs)
        return (cost.ns - cost.runs * counting) / self.counted.requests


def nginx(directory: Path) -> list[str | Path]:
    configuration = directory / "nginx.conf"
    configuration.write_text(NGINX.format(directory=directory, port=PORT))
    return ["nginx", "-c", configuration, "-p", directory]


def ways() -> list[tuple[str, tuple[Choice, ...]]]:
    """What `--hooks` may be here, and what each hook then gets."""
    with Btf.of_kernel() as btf:
        best = choose(btf)
    found = [("auto", best)]
    for mechanism in FORCEABLE:
        forced = tuple(choice.only(mechanism) for choice in best)
        if any(
            choice.chosen and choice.chosen.mechanism is mechanism
            for choice in forced
            if choice.hook.can_be_forced
        ):
            found.append((mechanism.value, forced))
    return found


def absent(choices: tuple[Choice, ...]) -> list[str]:
    """The stamps that nothing gives."""
    given = {stamp for choice in choices if choice.chosen for stamp in choice.hook.stamps}
    wanted = dict.fromkeys(stamp for choice in choices for stamp in choice.hook.stamps)
    return [stamp for stamp in wanted if stamp not in given]


def measure(
    net: Topology, name: str, choices: tuple[Choice, ...], fate: str, seconds: int,
    port: int = PORT,
) -> Measured:
    options, environment = FATES[fate]
    if options == WITHOUT_XDP:
        choices = without(choices, "arrival", "it was asked to be left alone")
    with agent(net, port, "--hooks", name, *options, **environment) as measuring:
        load(net, seconds)  # the series, and the orders that stamps come in, get their places
        before_s = measuring.processor_s()
        free = load(net, seconds)
        agent_s = measuring.processor_s() - before_s
        with stats_enabled():
            done = load(net, seconds)
            costs = costs_of(measuring.pid)
        sums = measuring.stop()
    used = dict.fromkeys(str(choice.chosen) for choice in choices if choice.chosen)
    becomes = fate if port == PORT else "passed by: another port is measured"
    print(f"\n  --hooks {name}, {done.requests} requests, {becomes}")
    print_costs(costs, done.requests, "instructions")
    lost = sums["lost"] or 0
    print(f"    seen {sums['seen']} = exported {sums['exported']} + sampled out "
          f"{sums['sampled_out']} + lost {lost}; missed {sums['missed'] or 0}")
    print(f"    attached: {', '.join(used)}", flush=True)
    return Measured(f"{name}, {fate}", costs, done, free, agent_s, absent(choices))


def measure_here(seconds: int) -> None:
    """Inside a guest."""
    print(f"kernel {platform.release()}, {os.cpu_count()} processor; nginx, wrk with {CONNECTIONS} "
          f"keep-alive connections, {seconds} s of the guest's time a load", flush=True)
    with served(nginx) as net:
        load(net, 1)
        alone = load(net, seconds)
        counting = baseline(net, seconds)["empty"].each
        print(f"\n  an empty tracepoint program: {counting:.0f} instructions a run")
        found = []
        for name, choices in ways():
            passing_by = measure(net, name, choices, "sampled out", seconds, OTHER_PORT)
            clients = passing_by.clients(counting)
            # All are added up whatever the hooks are; of the best ones the rest, too.
            for fate in FATES if name == "auto" else ("added up",):
                found.append((measure(net, name, choices, fate, seconds), clients))
    print(f"\n  {'a request':<27} BPF instructions  - counting  - client's sockets  of auto  "
          "programs run  nginx's requests a second  beside the agent")
    print(f"    {'no agent':<25} {'':77} {alone.per_second:10.0f}")
    first = found[0][0].instructions
    for each, clients in found:
        own = each.instructions - each.runs * counting
        print(f"    {each.name:<25} {each.instructions:16.0f}  {own:10.0f}  "
              f"{own - clients:18.0f}  {each.instructions / first:7.0%}  {each.runs:12.2f}  "
              f"{each.load.per_second:14.0f}, {each.load.per_second / alone.per_second:4.0%}"
              f"  {each.beside_the_agent:17.0f}, {each.beside_the_agent / alone.per_second:4.0%}"
              + (f"; absent: {', '.join(each.absent)}" if each.absent else ""))


def measure_in_guest(kernel: str, seconds: int) -> int:
    return subprocess.run(
        [ROOT / "tests/vm/run", kernel, "--icount", "--timeout", str(GUEST_TIMEOUT_S), "--",
         sys.executable, __file__, "--here", "--seconds", str(seconds)],
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kernels", metavar="KERNEL", nargs="*", default=["6.12", "6.1"],
                        help="as tests/vm/run takes it (default: 6.12 and 6.1)")
    parser.add_argument("--seconds", type=int, default=1, help="of each load (default: 1)")
    parser.add_argument("--here", action="store_true",
                        help="on this kernel, which must be such a guest's")
    options = parser.parse_args()
    if options.here:
        measure_here(options.seconds)
        return 0
    return max(measure_in_guest(kernel, options.seconds) for kernel in options.kernels)


if __name__ == "__main__":
    sys.exit(main())

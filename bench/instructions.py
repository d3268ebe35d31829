# SPDX-License-Identifier: Apache-2.0
"""How many instructions the programs run for a request, by each way to attach them.

    .venv/bin/python bench/instructions.py 6.12 6.1
    .venv/bin/python bench/instructions.py 6.12 --loaders    # the ready-made programs beside BCC's
    .venv/bin/python bench/instructions.py 6.12 --only kept "kept, a browser's head"

boots each of these kernels in QEMU, one after the other; with --only that takes three minutes. In
such a guest an instruction takes a nanosecond, so the kernel's statistics of the time in BPF
programs are the number of instructions that they ran, helpers included, and what counting them
takes itself. Client and server share the guest's kernel, so the hooks of the client's sockets are
counted too. Both are told apart: by an empty program, and by an agent that measures another port.
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
    Network,
    agent,
    baseline,
    costs_of,
    empty_xdp,
    load,
    of_clients,
    print_costs,
    served,
    stats_enabled,
)

from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import FORCEABLE, Choice, choose, without

GUEST_TIMEOUT_S = 3600
# Whether client and server take turns for one request or for several differs from load to load.
LOADS = 3


@dataclass(frozen=True)
class Fate:
    """What becomes of the requests, and what they are.

    Attributes:
        environment: the agent's.
        options: the agent's.
        headers: of each request.
    """

    environment: dict[str, str]
    options: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()


NO_SPANS = {"OTEL_TRACES_SAMPLER": "always_off"}
NO_METRICS = {"OTEL_METRICS_EXPORTER": "none"}
# What a browser sends beside the request line and Host, and a proxy's traceparent; with wrk's two
# lines, 645 bytes.
BROWSERS = (
    "Connection: keep-alive",
    "Cache-Control: max-age=0",
    "Upgrade-Insecure-Requests: 1",
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,*/*;q=0.8",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Mode: navigate",
    "Sec-Fetch-Dest: document",
    "Referer: https://shop.example.com/catalogue",
    "Accept-Encoding: gzip, deflate, br",
    "Accept-Language: en-GB,en;q=0.5",
    "Cookie: session=4f1c2a9be07d43c58a6be1d2f3907a5c; theme=dark; seen=17; visit=1794012",
    "traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
)
# As on every veth: native XDP has a price of its own there, since it copies each packet for it.
WITHOUT_XDP = ("--xdp", "auto")
FATES = {
    "added up": Fate({**NO_SPANS, "OTEL_METRICS_EXPORTER": "prometheus"}),
    "kept": Fate(NO_METRICS),
    "kept, a browser's head": Fate(NO_METRICS, headers=BROWSERS),
    "kept, no XDP": Fate(NO_METRICS, WITHOUT_XDP),
    "sampled out": Fate({**NO_SPANS, **NO_METRICS}),
    "sampled out, no XDP": Fate({**NO_SPANS, **NO_METRICS}, WITHOUT_XDP),
}
NGINX = """\
worker_processes 1; daemon off; user root; pid {directory}/pid; error_log stderr;
events {{ worker_connections 1024; }}
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
        counted: the load under which they were counted, while the agent was paused.
        paused: those without counting, while it was paused.
        agent_s: what the agent itself took for all of these.
        beside: one without counting that shared the processor with it; like `paused` it is empty
            where that was not asked for.
        absent: the stamps that it does not give.
    """

    name: str
    costs: dict[str, Cost]
    counted: Load
    paused: Load
    agent_s: float
    beside: Load
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
    def agents(self) -> float:
        """Instructions of the agent itself, a request."""
        return self.agent_s * 1e9 / (self.counted.requests + self.paused.requests)

    def clients(self, counting: float) -> float:
        """Of programs that pass this load by, a request: what the client's sockets take.

        Args:
            counting: what that takes, a run, and is left out.
        """
        cost = of_clients(self.costs)
        return (cost.ns - cost.runs * counting) / self.counted.requests


def as_one(loads: list[Load]) -> Load:
    """All of them together."""
    requests = sum(each.requests for each in loads)
    return Load(requests, requests / sum(each.seconds for each in loads)) if loads else Load(0, 0)


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
    net: Network,
    name: str,
    choices: tuple[Choice, ...],
    fate: str,
    seconds: int,
    port: int = PORT,
    loader: str = "auto",
    loads: int = LOADS,
) -> Measured:
    """What the programs take for requests of a fate.

    Args:
        loads: without counting, for their throughput.
    """
    what = FATES[fate]
    if what.options == WITHOUT_XDP:
        choices = without(choices, "arrival", "it was asked to be left alone")
    how = ("--hooks", name, "--loader", loader)
    with agent(net, port, *how, *what.options, **what.environment) as measuring:
        # The series, and the orders that stamps come in, get their places.
        load(net, seconds, what.headers)
        measuring.catch_up()
        before_s = measuring.processor_s()
        free = []
        for _ in range(loads):
            with measuring.paused():
                free.append(load(net, seconds, what.headers))
        with measuring.paused(), stats_enabled():
            done = load(net, seconds, what.headers)
            costs = costs_of(measuring.pid)
        measuring.catch_up()
        agent_s = measuring.processor_s() - before_s
        beside = Load(0, 0)
        if loads:
            beside = load(net, seconds, what.headers)
            measuring.catch_up()
        sums = measuring.stop()
    used = dict.fromkeys(str(choice.chosen) for choice in choices if choice.chosen)
    becomes = fate if port == PORT else "passed by: another port is measured"
    print(f"\n  {' '.join(how)}, {done.requests} requests, {becomes}")
    print_costs(costs, done.requests, "instructions")
    lost = sums["lost"] or 0
    print(
        f"    seen {sums['seen']} = exported {sums['exported']} + sampled out "
        f"{sums['sampled_out']} + lost {lost}; missed {sums['missed'] or 0}"
    )
    print(f"    attached: {', '.join(used)}", flush=True)
    if loader != "auto":
        name = loader
    return Measured(f"{name}, {fate}", costs, done, as_one(free), agent_s, beside, absent(choices))


def measure_here(seconds: int, loads: int) -> None:
    """Inside a guest.

    Args:
        loads: without counting, of each kind, for the throughput; 0: that is not measured.
    """
    print(
        f"kernel {platform.release()}, {os.cpu_count()} processor; nginx, wrk with {CONNECTIONS} "
        f"keep-alive connections, {seconds} s of the guest's time a load",
        flush=True,
    )
    with served(nginx) as net:
        load(net, 2 * seconds)
        alone = as_one([load(net, seconds) for _ in range(loads)])
        with_xdp = Load(0, 0)
        if loads:
            with empty_xdp(net):
                load(net, seconds)
                with_xdp = as_one([load(net, seconds) for _ in range(loads)])
        counting = baseline(net, seconds)["empty"].each
        print(f"\n  an empty tracepoint program: {counting:.0f} instructions a run")
        found = []
        for name, choices in ways():
            passing_by = measure(
                net, name, choices, "sampled out", seconds, OTHER_PORT, loads=loads
            )
            clients = passing_by.clients(counting)
            # All are added up whatever the hooks are; of the best ones the rest, too.
            for fate in FATES if name == "auto" else ("added up",):
                measured = measure(net, name, choices, fate, seconds, loads=loads)
                found.append((measured, clients))
    print_requests(found, counting)
    if loads:
        print_throughput(found, alone, with_xdp)


def compare_loaders(seconds: int) -> None:
    """The same of the ready-made programs and of BCC's, with the best hooks."""
    name, choices = ways()[0]
    found = []
    with served(nginx) as net:
        load(net, 2 * seconds)
        counting = baseline(net, seconds)["empty"].each
        for loader in ("object", "bcc"):
            passing_by = measure(
                net, name, choices, "sampled out", seconds, OTHER_PORT, loader, loads=0
            )
            clients = passing_by.clients(counting)
            for fate in ("kept", "kept, a browser's head", "added up"):
                measured = measure(net, name, choices, fate, seconds, loader=loader, loads=0)
                found.append((measured, clients))
    print_requests(found, counting)


def measure_only(fates: list[str], seconds: int) -> None:
    """These alone, with the best hooks; nothing of the client's sockets nor of the throughput."""
    name, choices = ways()[0]
    with served(nginx) as net:
        counting = baseline(net, seconds)["empty"].each
        found = [(measure(net, name, choices, fate, seconds, loads=0), 0.0) for fate in fates]
    print_requests(found, counting)


def print_requests(found: list[tuple[Measured, float]], counting: float) -> None:
    """What a request costs.

    Args:
        found: with what of it is the client's sockets'.
        counting: what that takes, a run.
    """
    print(
        f"\n  {'instructions of a request':<33} BPF  - counting  - client's sockets  of first  "
        "programs run"
    )
    first = found[0][0].instructions
    for each, clients in found:
        own = each.instructions - each.runs * counting
        print(
            f"    {each.name:<31} {each.instructions:5.0f}  {own:10.0f}  {own - clients:18.0f}  "
            f"{each.instructions / first:8.0%}  {each.runs:12.2f}"
            + (f"; absent: {', '.join(each.absent)}" if each.absent else "")
        )


def print_throughput(found: list[tuple[Measured, float]], alone: Load, with_xdp: Load) -> None:
    """What is left of nginx's throughput, and what the agent itself takes.

    Args:
        alone: without an agent.
        with_xdp: and with an empty XDP program.
    """
    print(
        f"\n  {'requests a second':<27} agent paused  of no agent  of an empty XDP program  "
        "agent beside it  of no agent  agent's own instructions a request"
    )
    for name, each in (("no agent", alone), ("an empty XDP program", with_xdp)):
        print(f"    {name:<25} {each.per_second:12.0f}  {each.per_second / alone.per_second:11.0%}")
    for each, _ in found:
        paused, beside = each.paused.per_second, each.beside.per_second
        of_xdp = "" if "nic" in each.absent else f"{paused / with_xdp.per_second:.0%}"
        print(
            f"    {each.name:<25} {paused:12.0f}  {paused / alone.per_second:11.0%}  {of_xdp:>23}"
            f"  {beside:15.0f}  {beside / alone.per_second:11.0%}  {each.agents:34.0f}"
        )


def measure_in_guest(kernel: str, seconds: int, *options: str) -> int:
    return subprocess.run(
        [
            ROOT / "tests/vm/run",
            kernel,
            "--icount",
            "--timeout",
            str(GUEST_TIMEOUT_S),
            "--",
            sys.executable,
            __file__,
            "--here",
            "--seconds",
            str(seconds),
            *options,
        ],
    ).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "kernels",
        metavar="KERNEL",
        nargs="*",
        default=["6.12", "6.1"],
        help="as tests/vm/run takes it (default: 6.12 and 6.1)",
    )
    parser.add_argument("--seconds", type=int, default=1, help="of each load (default: 1)")
    parser.add_argument(
        "--here", action="store_true", help="on this kernel, which must be such a guest's"
    )
    parser.add_argument(
        "--loaders", action="store_true", help="only compare the ready-made programs with BCC's"
    )
    parser.add_argument(
        "--no-throughput", action="store_true", help="only count: that takes a third of the time"
    )
    parser.add_argument(
        "--only",
        metavar="FATE",
        nargs="+",
        choices=FATES,
        help=f"only what the programs take for these: {', '.join(FATES)}",
    )
    options = parser.parse_args()
    if options.here:
        if options.only:
            measure_only(options.only, options.seconds)
        elif options.loaders:
            compare_loaders(options.seconds)
        else:
            measure_here(options.seconds, 0 if options.no_throughput else LOADS)
        return 0
    more = [f"--{name}" for name in ("loaders", "no-throughput") if f"--{name}" in sys.argv]
    if options.only:
        more += ["--only", *options.only]
    return max(measure_in_guest(kernel, options.seconds, *more) for kernel in options.kernels)


if __name__ == "__main__":
    sys.exit(main())

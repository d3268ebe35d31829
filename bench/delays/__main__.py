# SPDX-License-Identifier: Apache-2.0
"""How true the stages are: injects known delays under a real agent, and shows where they are."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from demo.processes import ProcessError, signals_as_exit
from support.namespaces import Network, network

from delays import machine, table
from delays.experiment import delays, run
from delays.findings import find
from delays.scenarios import SCENARIOS, Scenario

PAGE = Path(__file__).resolve().parents[2] / "docs/accuracy.md"
BEGIN = "<!-- What bench/truth wrote begins here. -->\n"
END = "<!-- It ends here. -->\n"
_COUNT = 100
_LEAST_NS, _MOST_NS = 10_000_000, 30_000_000


def main() -> int:
    """The command."""
    names = [each.name for each in SCENARIOS]
    parser = argparse.ArgumentParser(
        prog="bench/truth", description=__doc__,
        epilog=f"Needs root, and two processors. NAME is one of: {', '.join(names)}.",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=_COUNT, metavar="N",
                        help=f"delays of each kind (default: {_COUNT})")  # fmt: skip
    parser.add_argument("--only", action="append", choices=names, metavar="NAME",
                        help="only this kind; may be repeated")  # fmt: skip
    parser.add_argument("--write", action="store_true",
                        help="write the tables into docs/accuracy.md")  # fmt: skip
    options = parser.parse_args()
    if options.count < 1:
        parser.error("--count is at least 1")
    if options.write and options.only:
        parser.error("--write takes all kinds, without --only")
    scenarios = [each for each in SCENARIOS if not options.only or each.name in options.only]
    try:
        with signals_as_exit(), network() as net:
            said = "\n".join(_said(net, scenarios, options.count))
    except (ProcessError, RuntimeError) as error:
        print(f"bench/truth: {error}", file=sys.stderr)
        return 1
    print(said, end="")
    if options.write:
        before, begin, rest = PAGE.read_text().partition(BEGIN)
        _, end, after = rest.partition(END)
        PAGE.write_text(before + begin + said + end + after)
    return 0


def _said(net: Network, scenarios: Sequence[Scenario], count: int) -> Iterator[str]:
    """All lines."""
    still, load = machine.stillness(), os.getloadavg()[0]
    trials = {
        xdp: run(net, scenarios, delays(count, _LEAST_NS, _MOST_NS), xdp=xdp)
        for xdp in (True, False)
    }
    yield (
        f"{machine.name()}, whose load was {load:.1f} before and {os.getloadavg()[0]:.1f} "
        "afterwards, others' work included. A real-time loop that only reads the clock was held "
        f"up there for more than 50 µs {still.held_up_per_s:.0f} times a second, for "
        f"{still.longest_ns / 1000:,.0f} µs at most.\n"
    )
    for xdp, each in trials.items():
        findings = list(map(find, each))
        yield f"### {'With' if xdp else 'Without'} XDP\n"
        yield table.of_delays(findings) + "\n"
        if wrong := table.of_wrong(findings):
            yield f"Where it was told elsewhere:\n\n{wrong}\n"
        yield "Ours minus tcpdump's, in µs (p99 and max of its size):\n"
        yield table.of_stamps(findings) + "\n"
    yield "### What the two ends do\n"
    yield table.of_scenarios(scenarios) + "\n"


if __name__ == "__main__":
    sys.exit(main())

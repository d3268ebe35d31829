# SPDX-License-Identifier: Apache-2.0
"""How true the stages are: injects known delays, and shows what became of each."""

from __future__ import annotations

import argparse
import os
import platform
import sys

from demo.processes import signals_as_exit
from demo.topology import topology

from delays import table
from delays.experiment import delays, run
from delays.findings import Finding, find
from delays.scenarios import SCENARIOS

_LEAST_NS, _MOST_NS = 10_000_000, 30_000_000


def main() -> int:
    """Needs root."""
    parser = argparse.ArgumentParser(prog="bench/truth", description=__doc__)
    parser.add_argument("--count", type=int, default=100, metavar="N",
                        help="delays of each kind (default: 100)")  # fmt: skip
    parser.add_argument("--only", action="append", choices=[each.name for each in SCENARIOS])
    parser.add_argument("--xdp", choices=("on", "off"))
    options = parser.parse_args()
    scenarios = [each for each in SCENARIOS if not options.only or each.name in options.only]
    delays_ns = delays(options.count, _LEAST_NS, _MOST_NS)
    with signals_as_exit(), topology() as net:
        for xdp in (True, False):
            if options.xdp and xdp != (options.xdp == "on"):
                continue
            findings = [find(each) for each in run(net, scenarios, delays_ns, xdp=xdp)]
            print(table.of_delays(findings))
            print()
            print(table.of_stamps(findings))
            for each in findings:
                if each.wrong:
                    print(each.scenario.name, each.wrong)
            print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

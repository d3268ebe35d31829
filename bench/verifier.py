# SPDX-License-Identifier: Apache-2.0
"""How many instructions the verifier looks at for each program, of a million that it allows.

    .venv/bin/python bench/verifier.py            # prints them, beside the budget
    .venv/bin/python bench/verifier.py --write    # makes them the budget, bench/verifier.json

tests/kernel/test_verifier.py holds them to it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import sys
from pathlib import Path
from typing import Any

from otelbpf.agent.settings import settings
from otelbpf.host.netns import find_netns
from otelbpf.kernel import bpf_info
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loader import Programs
from otelbpf.policy.proxies import Forwarding, network
from otelbpf.policy.upstreams import Upstreams

BUDGET = Path(__file__).with_name("verifier.json")
#: Ports, upstreams' ports, series.
CONFIGURATIONS = {
    "servers": ((8080,), (), 0),
    "servers, metrics": ((8080,), (), 256),
    "clients": ((), (9000,), 0),
    "clients, metrics": ((), (9000,), 256),
    "both": ((8080,), (9000,), 0),
    "both, metrics": ((8080,), (9000,), 256),
}
#: More than one, so that all of the search is looked at.
PROXIES = (network("10.0.0.0/8"), network("fd00::/8"))


def setting() -> str:
    """What the counts depend on beside the ready-made programs: whose verifier it is."""
    return f"Linux {'.'.join(platform.release().split('.')[:2])}"


def looked_at(configuration: str) -> dict[str, int]:
    """Program -> instructions, of all that are loaded for a configuration."""
    ports, upstreams, series = CONFIGURATIONS[configuration]
    told = settings(
        find_netns(None).cookie, ports, upstreams=Upstreams(ports=upstreams), proxies=PROXIES,
        forwarding=Forwarding(PROXIES),
    )  # fmt: skip
    with Btf.of_kernel() as btf:
        choices = choose(btf, metrics=bool(series))
        programs = Programs(btf, choices, Limits(series=series), told)
    with contextlib.closing(programs):
        return {
            name: bpf_info.program_info(fd).verified
            for name, fd in sorted(programs.loaded().items())
        }


def budget() -> dict[str, Any]:
    """`setting`, and `programs` by configuration."""
    return json.loads(BUDGET.read_text())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="make them the budget")
    is_write = parser.parse_args().write
    measured = {name: looked_at(name) for name in CONFIGURATIONS}
    if is_write:
        BUDGET.write_text(json.dumps({"setting": setting(), "programs": measured}, indent=1) + "\n")
    allowed = budget()
    print(f"{setting()}; the budget is of {allowed['setting']}")
    for name, programs in measured.items():
        print(f"\n  {name}: {sum(programs.values()):,} in all")
        for program, count in sorted(programs.items(), key=lambda item: -item[1]):
            of = allowed["programs"].get(name, {}).get(program)
            print(f"    {program:<22} {count:>9,}  {f'of {of:,}' if of else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

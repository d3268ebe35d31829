# SPDX-License-Identifier: Apache-2.0
"""Run in a guest by test_runner.py: looks around, and leaves what it saw in a file.

usage: visitor.py FACTS.json WRITTEN REMOVED
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

MODULES = ("veth", "sch_netem", "sch_ingress", "act_bpf", "cls_bpf", "8021q")


def succeeds(*command: str) -> str:
    """Nothing if it does, else its last words."""
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else f"{command}: {done.stderr or done.returncode}"


def zombies() -> list[str]:
    """Processes that have ended and that nobody has asked about."""
    states = (path.read_text() for path in Path("/proc").glob("[0-9]*/stat"))
    return [state for state in states if state.rpartition(")")[2].split()[0] == "Z"]


def clock_rate() -> float:
    """How fast the clock runs, by the emulated machine's other one, that knows seconds only."""

    def next_second() -> tuple[int, float]:
        now = seconds.read_text()
        while (then := seconds.read_text()) == now:
            pass
        return int(then), time.monotonic()

    seconds = Path("/sys/class/rtc/rtc0/since_epoch")
    (first, start), _, (last, end) = (next_second() for _ in range(3))
    return (end - start) / (last - first)


def main() -> None:
    facts, written, removed = map(Path, sys.argv[1:])
    written.write_text("in the guest")
    removed.unlink()
    # A child that its parent leaves behind goes to the first process, which has to bury it.
    subprocess.run(["sh", "-c", "true & exec true"], check=True)
    mounts = Path("/proc/mounts").read_text()
    clock = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource").read_text()
    seen = {
        "release": os.uname().release,
        "directory": os.getcwd(),
        "environment": dict(os.environ),
        "user": os.getuid(),
        "mounts": dict(line.split()[1:3] for line in mounts.splitlines()),
        "modules": [complaint for name in MODULES if (complaint := succeeds("modprobe", name))],
        "tap": succeeds("ip", "tuntap", "add", "mode", "tap", "name", "tap0"),
        "namespace": succeeds("ip", "netns", "add", "guest"),
        "namespaces": os.listdir("/run/netns"),
        "processors": os.cpu_count(),
        "clock": clock.strip(),
        "clock_rate": clock_rate(),
    }
    while zombies():
        os.sched_yield()
    facts.write_text(json.dumps(seen))

    # It outlives the command, and holds its output open.
    subprocess.Popen(["sleep", "1000"])
    os.write(1, bytes(range(256)) * 1024)
    os.write(2, b"error output\n")
    Path("/dev/stdout").write_bytes(b"by its name\r\n")
    sys.exit(7)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes."""

from __future__ import annotations

import os
from pathlib import Path

_PROC = Path("/proc")


def executable_name(pid: int) -> str:
    """The file name of a process's executable; empty where it cannot be told any more."""
    try:
        return Path(os.readlink(_PROC / str(pid) / "exe")).name.removesuffix(" (deleted)")
    except OSError:
        return ""


def cgroup_directory() -> Path | None:
    """Where the topmost cgroup that can be seen from here is mounted; None: it is not."""
    for line in (_PROC / "self" / "mountinfo").read_text().splitlines():
        mounted, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            # Blanks and the like are written as octal escapes.
            return Path(mounted.split()[4].encode().decode("unicode_escape"))
    return None


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none.

    A pid is used again, a pid with its start time is not.
    """
    try:
        # The command's name, in parentheses, may hold anything.
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0

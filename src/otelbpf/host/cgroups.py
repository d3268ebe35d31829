# SPDX-License-Identifier: Apache-2.0
"""What the place of a process among the cgroups says of it: its service unit, its container."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import NamedTuple

_SERVICE = ".service"
# What a unit of the machine's own manager, or of a user's, may lie in; a container's may not.
_SLICES = re.compile(r"/?((\.\.|[^/]+\.slice|user@[0-9]+\.service)/)*")
_DELETED = " (deleted)"
# Of the topmost one, in which all are where there is no other.
_TOPMOST = 1
_WALK_LEAST_S = 1.0
# Of all time, what may go into looking through the hierarchy.
_WALK_SHARE = 0.05
_KNOWN_MOST = 65_536


class Paths(NamedTuple):
    """Where a process is, as /proc/PID/cgroup says; empty: nowhere.

    Attributes:
        unified: in cgroup2's hierarchy, whose cgroups the kernel's records name.
        systemds: in the one that systemd keeps its units in, which may be another one.
        all: in all hierarchies that there are.
    """

    unified: str
    systemds: str
    all: tuple[str, ...]


def paths_of(lines: str) -> Paths:
    """Reads /proc/PID/cgroup."""
    paths = {}
    for line in lines.splitlines():
        number, controllers, path = line.split(":", 2)
        paths[controllers or number] = path.removesuffix(_DELETED)
    unified = paths.get("0", "")
    systemds = paths.get("name=systemd", "") if unified in ("", "/") else ""
    return Paths(unified, systemds or unified, tuple(dict.fromkeys(paths.values())))


def service_unit(path: str) -> str:
    """The service unit that a process is of, without its ending; empty: of none.

    Only if that is the innermost part: below it a service makes cgroups for others. Units inside
    of containers are none.
    """
    outer, _, unit = path.rpartition("/")
    if not unit.endswith(_SERVICE) or not _SLICES.fullmatch(f"{outer}/"):
        return ""
    # systemd's mark for names that the kernel could take for its own files.
    return unit.removesuffix(_SERVICE).removeprefix("_")


class Cgroups:
    """Finds the path of a cgroup in cgroup2's hierarchy by its number.

    Args:
        root: where the topmost one is mounted; None: nowhere.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._paths: dict[int, str] = {}
        self._services: dict[str, None] = {}
        self._next_walk_s = 0.0

    def path(self, number: int) -> str:
        """The path of the cgroup with this number; empty: there is none."""
        if number not in self._paths and time.monotonic() >= self._next_walk_s:
            self._walk()
        return self._paths.get(number, "")

    def number(self, path: str) -> int:
        """The number of the cgroup that has this path now; 0: none that is known."""
        if self._root is None:
            return _TOPMOST
        with contextlib.suppress(OSError):
            return os.stat(self._root / path.lstrip("/")).st_ino
        return 0

    def learn(self, number: int, path: str) -> None:
        """A process in the cgroup with this number, as the kernel has told, has this path.

        A service that is started again gets another cgroup by the same path: refresh() looks for
        it, since its processes may be gone before anybody has looked at them.
        """
        # In a namespace of cgroups paths may begin elsewhere than here.
        if self._root is not None and self.number(path) == number:
            self._note(number, path)
            if service_unit(path):
                self._services[path] = None

    def refresh(self) -> None:
        """Looks again at the services that are known."""
        for path in list(self._services):
            number = self.number(path)
            if number:
                self._note(number, path)

    def _note(self, number: int, path: str) -> None:
        if len(self._paths) >= _KNOWN_MOST:
            self._paths.clear()
            self._services.clear()
        self._paths[number] = path

    def _walk(self) -> None:
        """Looks through the whole hierarchy, but not all the time."""
        if self._root is None:
            return
        started_s = time.monotonic()
        outer = [""]
        while outer:
            path = outer.pop()
            # One may go away meanwhile.
            with contextlib.suppress(OSError), os.scandir(self._root / path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        inner = f"{path}/{entry.name}" if path else entry.name
                        self._note(entry.inode(), f"/{inner}")
                        outer.append(inner)
        took_s = time.monotonic() - started_s
        self._next_walk_s = started_s + max(_WALK_LEAST_S, took_s / _WALK_SHARE)

# SPDX-License-Identifier: Apache-2.0
"""A made-up /proc, and processes in it as the kernel could have told of them."""

from __future__ import annotations

import contextlib
import itertools
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from otelbpf.host import processes
from otelbpf.host.processes import Process

_TICK_NS = 10_000_000
_stacks = itertools.count(0x7FFD_0000_1000, 0x1_0000)


@contextlib.contextmanager
def instead_of_proc(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proc]:
    """A made-up one in this directory, which is looked at in the place of the kernel's."""
    monkeypatch.setattr(processes, "_PROC", directory)
    processes._boottime_offset_ns.cache_clear()
    yield Proc(directory)
    processes._boottime_offset_ns.cache_clear()


class Proc:
    """A directory that looks like /proc to those who look at processes."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "self").mkdir()
        (directory / "self" / "timens_offsets").write_text("monotonic 0 0\nboottime 0 0\n")
        (directory / "sys/kernel").mkdir(parents=True)
        self.randomize("2")

    def randomize(self, how: str) -> None:
        """kernel.randomize_va_space."""
        (self.directory / "sys/kernel/randomize_va_space").write_text(f"{how}\n")

    def add(
        self,
        pid: int,
        executable: str = "",
        arguments: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        *,
        comm: bytes | None = None,
        cgroup: str = "0::/\n",
        start_boottime_ns: int = 0,
        stack: int | None = None,
        personality: int = 0,
        state: str = "S",
        cgroup_id: int = 1,
        parent: int = 1,
        files: Mapping[int, str] | None = None,
    ) -> Process:
        """A process, as the kernel has it in a record.

        Args:
            executable: its path; empty: who asks has no right to look at what it runs.
            comm: None: as exec() sets it.
            stack: None: one of its own.
            files: what it has open, by their numbers.
        """
        made = self.directory / str(pid)
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir()
        stack = next(_stacks) if stack is None else stack
        start_boottime_ns = start_boottime_ns or 1_000_000_000 * pid + 7_654_321
        name = Path(executable).name.encode()[:15] if comm is None else comm
        (made / "comm").write_bytes(name + b"\n")
        fields = [state, str(parent), *["0"] * 17, str(start_boottime_ns // _TICK_NS), *["0"] * 5]
        told = stack if executable else 0
        (made / "stat").write_bytes(
            f"{pid} (".encode() + name + f") {' '.join(fields)} {told} 0 0\n".encode()
        )
        (made / "exe").unlink(missing_ok=True)
        if executable:
            (made / "exe").symlink_to(executable)
            (made / "personality").write_text(f"{personality:08x}\n")
            pairs = (environment or {}).items()
            (made / "environ").write_text("".join(f"{key}={value}\0" for key, value in pairs))
        (made / "cmdline").write_text("".join(f"{each}\0" for each in arguments))
        (made / "cgroup").write_text(cgroup)
        (made / "fd").mkdir()
        for number, file in (files or {}).items():
            (made / "fd" / str(number)).symlink_to(file)
        return Process(pid, start_boottime_ns, cgroup_id, stack, name)

    def remove(self, pid: int) -> None:
        """It ends."""
        gone = self.directory / str(pid)
        shutil.rmtree(gone)

# SPDX-License-Identifier: Apache-2.0
"""Which files a handler is looked for in: one executable or library, or all that a process runs."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from otelbpf.errors import UsageError
from otelbpf.host.processes import executable_name, mapped_files
from otelbpf.userspace.elf import DEBUG_ROOT, Elf, is_elf


@dataclass(frozen=True)
class TargetFile:
    """A file to look into.

    Attributes:
        path: as the processes that run it have it.
        openable: as this process can open it.
        pid: the only process that is meant; None: all that run it.
    """

    path: Path
    openable: Path
    pid: int | None = None

    def open(self) -> Elf:
        """Raises UsageError: it cannot be read, or probed."""
        if self.pid is None:
            return Elf(self.openable)
        inside = Path(f"/proc/{self.pid}/root", DEBUG_ROOT.relative_to("/"))
        return Elf(self.openable, f"{self.path} (process {self.pid})", (inside, DEBUG_ROOT))


def find_files(target: str) -> list[TargetFile]:
    """The files that a target names: at least one.

    Args:
        target: a process's number, a path, or a command's name.
    Raises:
        UsageError: there is none that can be read.
    """
    if target.isascii() and target.isdigit():
        return _files_of_process(int(target))
    found = Path(shutil.which(target) or target)
    if not found.is_file():
        raise UsageError(
            f"there is no file {target}, and no such command; give the path of an executable or a "
            "library, or the number of a process"
        )
    path = found.resolve()
    return [TargetFile(path, path)]


def _files_of_process(pid: int) -> list[TargetFile]:
    try:
        mapped = mapped_files(pid)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise UsageError(
            f"there is no process {pid}; `pgrep -a NAME` finds the number of one"
        ) from error
    except OSError as error:
        raise UsageError(
            f"cannot see what process {pid} runs: {error.strerror}; do it as root"
        ) from error
    files = [
        TargetFile(each.path, each.openable, pid)
        for each in mapped
        if each.openable and each.openable.is_file() and is_elf(each.openable)
    ]
    if not files:
        raise UsageError(
            f"process {pid} ({executable_name(pid) or 'of the kernel'}) runs no file that could be "
            "read; as root, name a process that is no kernel thread"
        )
    return files

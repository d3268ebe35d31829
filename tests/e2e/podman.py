# SPDX-License-Identifier: Apache-2.0
"""Containers of podman's and runc's; nothing is pulled."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.processes import Process, running
from support.waiting import DEADLINE_S

_ROOT = Path(__file__).resolve().parents[2]
_BUILD_S = 900.0
# crun takes no mixture of both versions of cgroups; and no more rights than there are.
_CONFIGURATION = """
[containers]
default_ulimits = []
cgroups = "disabled"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    """Images and containers in a directory of their own.

    Args:
        storage: the driver for images. `vfs` leaves no mount behind.
    """

    def __init__(self, directory: Path, storage: str = "overlay") -> None:
        self.directory = directory
        self._storage = storage
        (directory / "containers.conf").write_text(_CONFIGURATION)

    def command(self, program: str, *arguments: str | Path) -> list[str | Path]:
        """Of podman or buildah."""
        return [
            "env", f"CONTAINERS_CONF={self.directory / 'containers.conf'}", program,
            "--root", self.directory / "storage", "--runroot", self.directory / "run",
            f"--storage-driver={self._storage}", *arguments,
        ]  # fmt: skip

    def say(self, program: str, *arguments: str | Path, stdin: int | None = None) -> str:
        """What it prints; it does what it is told."""
        done = subprocess.run(
            self.command(program, *arguments), cwd=_ROOT, text=True, timeout=_BUILD_S,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def run(self, *arguments: str | Path) -> list[str | Path]:
        """The start of a command that runs a container in cgroups of its own."""
        return self.command(
            "podman", "run", "--cgroups=enabled", "--ulimit=nofile=20000:20000",
            "--ulimit=nproc=1000:1000", *arguments,
        )  # fmt: skip


@dataclass(frozen=True)
class Container:
    """A container that runs.

    Attributes:
        id: as podman names it.
        pid: of its first process, on the host.
    """

    id: str
    pid: int
    process: Process


@contextlib.contextmanager
def container(
    podman: Podman,
    name: str,
    program: Path,
    arguments: Sequence[str],
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Container]:
    """Runs a program in a container, with this machine's /usr and nothing else of its files.

    It has PIDs, mounts and cgroups of its own, and what else the options say.

    Args:
        program: is copied, and run by its name: whoever is root in there may not come to where
            it is.
    """
    full_name = f"otelbpf-test-{os.getpid()}-{name}"
    variables = [f"--env={key}={value}" for key, value in (environment or {}).items()]
    files = podman.directory / name
    root = files / "root"
    for directory in ("usr", "proc", "sys", "dev", "tmp", "etc", "run"):
        (root / directory).mkdir(parents=True)
        (root / directory).chmod(0o777)
    for link in ("bin", "lib", "lib64", "sbin"):
        (root / link).symlink_to(f"usr/{link}")
    inside = root / "run" / program.name
    shutil.copyfile(program, inside)
    inside.chmod(0o755)
    start = ["python3"] if program.suffix == ".py" else []
    whole = podman.run(
        "--name", full_name, "--volume=/usr:/usr:ro", *variables, *options, "--rootfs", root,
        *start, f"/run/{program.name}", *arguments,
    )  # fmt: skip
    with running(name, whole, files) as process:
        try:
            process.wait_until(lambda _: bool(_inspected(podman, full_name)), DEADLINE_S)
            identity, pid = _inspected(podman, full_name)
            yield Container(identity, int(pid), process)
        finally:
            podman.say("podman", "rm", "--force", "--ignore", "--time=0", full_name)


def _inspected(podman: Podman, name: str) -> list[str]:
    """Its id and its first process; nothing until it runs."""
    asked = subprocess.run(
        podman.command("podman", "inspect", "--format={{.Id}} {{.State.Pid}}", name),
        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    words = asked.stdout.split()
    return words if len(words) == 2 and words[1] != "0" else []

# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from otelbpf.netns import Netns

_PROC = Path("/proc")
# TCP_LISTEN, as /proc/net/tcp writes it
_LISTENING = "0A"


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


def listening_processes(ports: Collection[int], netns: Netns) -> set[int]:
    """The processes that have a socket which listens on one of these TCP ports; of all they see."""
    return set().union(*_owners(netns.run(lambda: _listening_sockets(ports))).values())


def listening_ports(netns: Netns) -> dict[int, str]:
    """The TCP ports that somebody listens on, and who that is: an executable's name.

    Empty where it cannot be told, as of another PID namespace. This process's own are left out.
    """
    sockets = netns.run(lambda: _listening_sockets(range(1 << 16)))
    owners = _owners(sockets)
    return {
        port: executable_name(min(owners[port])) if port in owners else ""
        for port in sockets.values()
        if os.getpid() not in owners.get(port, ())
    }


def _owners(sockets: Mapping[str, int]) -> dict[int, set[int]]:
    """The processes that have these sockets, by port."""
    found: dict[int, set[int]] = {}
    for descriptors in _PROC.glob("[0-9]*/fd") if sockets else ():
        with contextlib.suppress(OSError):  # it has just ended
            for name in os.listdir(descriptors):
                with contextlib.suppress(OSError):
                    port = sockets.get(os.readlink(descriptors / name))
                    if port is not None:
                        found.setdefault(port, set()).add(int(descriptors.parent.name))
    return found


def _listening_sockets(ports: Collection[int]) -> dict[str, int]:
    """The port of each, by the name that /proc/PID/fd has for it; of this thread's namespace."""
    sockets = {}
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for line in (_PROC / "thread-self/net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                port = int(fields[1].rpartition(":")[2], 16)
                if fields[3] == _LISTENING and port in ports:
                    sockets[f"socket:[{fields[9]}]"] = port
    return sockets


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot; 0 where there is none.

    A pid is used again, a pid with its start time is not.
    """
    try:
        # The command's name, in parentheses, may hold anything.
        return int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


@dataclass(frozen=True)
class MappedFile:
    """A file that a process runs code of.

    Attributes:
        path: as the process has it, which may be another file here or none.
        openable: the same file for this process, for as long as that one lives; None: it
            cannot be had without more rights.
        address: where the process has the first of them.
        offset: where in the file that one begins.
    """

    path: Path
    openable: Path | None
    address: int
    offset: int


def mapped_files(pid: int) -> list[MappedFile]:
    """The files of which a process has mapped executable parts: its executable, and libraries.

    Raises:
        OSError: there is no such process, or it is none of this user's.
    """
    found: dict[tuple[str, str], MappedFile] = {}
    for line in (_PROC / str(pid) / "maps").read_text(errors="surrogateescape").splitlines():
        addresses, permissions, offset, device, inode, *name = line.split(maxsplit=5)
        file = (device, inode)
        if "x" not in permissions or not name or not name[0].startswith("/") or file in found:
            continue
        mapped = name[0].replace("\\012", "\n")
        path = Path(mapped.removesuffix(" (deleted)"))
        found[file] = MappedFile(
            path,
            _openable(pid, mapped, path, addresses),
            int(addresses.partition("-")[0], 16),
            int(offset, 16),
        )
    return list(found.values())


def _openable(pid: int, mapped: str, path: Path, addresses: str) -> Path | None:
    """A path that leads to a mapped file from here: it may be in a container, deleted, replaced."""
    process = _PROC / str(pid)
    by_name = process / "root" / path.relative_to("/")
    # maps writes at least eight digits, map_files no zero that it need not.
    by_address = process / "map_files" / "-".join(f"{int(a, 16):x}" for a in addresses.split("-"))
    executable = process / "exe"
    with contextlib.suppress(OSError):
        if os.readlink(executable) == mapped:
            return by_name if _is_same(by_name, executable) else executable
    with contextlib.suppress(OSError):
        by_address.stat()
        return by_name if _is_same(by_name, by_address) else by_address
    # Only root may look through map_files.
    return by_name if str(path) == mapped and by_name.is_file() else None


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

from otelbpf.host.netns import Netns

_PROC = Path("/proc")
# TCP_LISTEN, as /proc/net/tcp writes it
_LISTENING = "0A"
_LISTENERS_LEAST_S = 1.0
# Of all time, what may go into looking for listeners.
_LISTENERS_SHARE = 0.05
# USER_HZ, in which /proc tells times on every machine that otelbpf runs on.
_NS_PER_TICK = 10_000_000
# linux/personality.h: exec() puts all where it always does.
_ADDR_NO_RANDOMIZE = 0x0040000
_LOOKS = 3


class Process(NamedTuple):
    """A process as the kernel knew it when it read a request, or wrote one to an upstream.

    Attributes:
        pid: 0: it is not known who that was, and all else means nothing.
        start_boottime_ns: no two processes with the same pid have the same.
        cgroup_id: its cgroup's number, in cgroup2's hierarchy.
        stack: the address of its stack. What exec() starts has one that was drawn by lot, and
            what a process forks has the same.
        comm: its main thread's name.
    Source:
        struct process, bpf/abi/records.h.
    """

    pid: int
    start_boottime_ns: int
    cgroup_id: int
    stack: int
    comm: bytes


NOBODY = Process(0, 0, 0, 0, b"")


@dataclass(frozen=True)
class Running:
    """What /proc says of a process; empty is what it does not say.

    Attributes:
        parent: its pid; 0: it has none that can be seen from here.
        start_ticks: since boot, by the clock that the agent sees.
        stack: its address; 0: it is not told, or exec() did not draw it by lot.
        executable: its file name.
        variables: those of its environment that were asked for.
        cgroups: the lines of its cgroups.
    """

    pid: int
    parent: int
    start_ticks: int
    stack: int
    comm: bytes
    executable: str
    arguments: tuple[str, ...]
    variables: dict[str, str]
    cgroups: str

    def is_still(self, process: Process) -> bool:
        """Is it that process, and runs what that ran?

        An exec() leaves the pid and the start as they were.
        """
        ticks = (process.start_boottime_ns + _boottime_offset_ns()) // _NS_PER_TICK
        if self.start_ticks != ticks:
            return False
        return self.stack == process.stack if self.stack else self.comm == process.comm


def look_at(pid: int, variables: Iterable[str]) -> Running | None:
    """What /proc says of a process; None: there is none any more.

    Args:
        variables: which ones of its environment are to be looked for.
    """
    process = _PROC / str(pid)
    for _ in range(_LOOKS):
        before = _stat_of(process)
        if before is None:
            return None
        running = Running(
            pid=pid,
            parent=before.parent,
            start_ticks=before.start_ticks,
            stack=before.stack if _is_drawn_by_lot(process) else 0,
            comm=_read(process / "comm").removesuffix(b"\n"),
            executable=executable_name(pid),
            arguments=tuple(map(_text, _read(process / "cmdline").rstrip(b"\0").split(b"\0"))),
            variables=_variables_of(process, variables),
            cgroups=_text(_read(process / "cgroup")),
        )
        # Else another process, another parent, or an exec() has come between.
        if _stat_of(process) == before:
            return running
    return None


class _Stat(NamedTuple):
    parent: int
    start_ticks: int
    stack: int


def _stat_of(process: Path) -> _Stat | None:
    # The command's name, in parentheses, may hold anything.
    fields = _read(process / "stat").rpartition(b")")[2].split()
    if not fields or fields[0] in (b"Z", b"X"):
        return None
    return _Stat(int(fields[1]), int(fields[19]), int(fields[25]))


def _is_drawn_by_lot(process: Path) -> bool:
    """Has exec() chosen the address of its stack at random?"""
    personality = _read(process / "personality")
    return (
        _read(_PROC / "sys/kernel/randomize_va_space").strip() != b"0"
        and bool(personality)
        and not int(personality, 16) & _ADDR_NO_RANDOMIZE
    )


def _variables_of(process: Path, names: Iterable[str]) -> dict[str, str]:
    wanted = {f"{name}=".encode(): name for name in names}
    found: dict[str, str] = {}
    for each in _read(process / "environ").split(b"\0"):
        key, equals, value = each.partition(b"=")
        name = wanted.get(key + equals)
        if name is not None:
            found.setdefault(name, _text(value))
    return found


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "backslashreplace")


@cache
def _boottime_offset_ns() -> int:
    """What the agent's time namespace adds to the kernel's time since boot."""
    for line in _read(_PROC / "self" / "timens_offsets").decode().splitlines():
        clock, seconds, ns = line.split()
        if clock == "boottime":
            return int(seconds) * 1_000_000_000 + int(ns)
    return 0


def executable_name(pid: int) -> str:
    """The file name of a process's executable; empty where it cannot be told any more."""
    try:
        return Path(os.readlink(_PROC / str(pid) / "exe")).name.removesuffix(" (deleted)")
    except OSError:
        return ""


def open_files(pid: int) -> Iterator[tuple[int, str]]:
    """The numbers of a process's open files, and what each one is; as far as it can be told."""
    try:
        with os.scandir(_PROC / str(pid) / "fd") as files:
            for file in files:
                with contextlib.suppress(OSError):
                    yield int(file.name), os.readlink(file.path)
    except OSError:
        return


def cgroup_directory() -> Path | None:
    """Where the topmost cgroup that can be seen from here is mounted; None: it is not."""
    try:
        mounts = (_PROC / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in mounts:
        mounted, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 "):
            # Blanks and the like are written as octal escapes.
            return Path(mounted.split()[4].encode().decode("unicode_escape"))
    return None


class Listeners:
    """Who listens on the measured ports: all processes that have such a socket, of all they see.

    Args:
        ports: TCP ports.
        netns: the network namespace that they are in.
    """

    def __init__(self, ports: Collection[int], netns: Netns) -> None:
        self._ports = frozenset(ports)
        self._netns = netns
        self._found: dict[int, frozenset[int]] = {}
        self._next_look_s = 0.0

    def of(self, port: int) -> frozenset[int]:
        """The pids of those of a port, as they were about a second ago at most.

        The same object as before where nobody has looked since.
        """
        if port in self._ports and time.monotonic() >= self._next_look_s:
            self._look()
        return self._found.get(port, frozenset())

    def of_all_ports(self) -> frozenset[int]:
        """The pids of all of them."""
        return frozenset().union(*(self.of(port) for port in self._ports))

    def _look(self) -> None:
        started_s = time.monotonic()
        owners = _owners(self._netns.run(lambda: _listening_sockets(self._ports)))
        self._found = {port: frozenset(owners.get(port, ())) for port in self._ports}
        took_s = time.monotonic() - started_s
        self._next_look_s = started_s + max(_LISTENERS_LEAST_S, took_s / _LISTENERS_SHARE)


def listening_ports(netns: Netns) -> set[int]:
    """The TCP ports that somebody listens on."""
    return set(netns.run(lambda: _listening_sockets(range(1 << 16))).values())


def who_listens(netns: Netns) -> dict[int, set[int]]:
    """The same ports, and the processes that do: of all they see, none.

    All descriptors of all processes are looked at for it.
    """
    sockets = netns.run(lambda: _listening_sockets(range(1 << 16)))
    owners = _owners(sockets)
    return {port: owners.get(port, set()) for port in sockets.values()}


def _owners(sockets: Mapping[str, int]) -> dict[int, set[int]]:
    """The processes that have these sockets, by port."""
    found: dict[int, set[int]] = {}
    for process in _PROC.glob("[0-9]*") if sockets else ():
        pid = int(process.name)
        for _, file in open_files(pid):
            port = sockets.get(file)
            if port is not None:
                found.setdefault(port, set()).add(pid)
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

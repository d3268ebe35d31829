# SPDX-License-Identifier: Apache-2.0
"""The rights of this process, as capabilities: what it takes to start, and what is kept after that.

The kernel gives them to threads, not to processes, and a thread can only give up its own. So what
is not needed any more is given up before threads are started that last: they inherit what is left.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TypeVar

from otelbpf.errors import KernelError

T = TypeVar("T")

_THREADS = Path("/proc/self/task")
# How long a thread that was joined may still be seen.
_ENDING_S = 1.0
# linux/capability.h and linux/prctl.h
_OWN = (ctypes.c_uint32 * 2)(0x20080522, 0)
# The lower halves of the effective, the permitted and the inheritable ones, then the upper halves.
_Sets = ctypes.c_uint32 * 6
_CAPABILITIES_MOST = 64
_PR_CAPBSET_DROP = 24
_PR_SET_NO_NEW_PRIVS = 38


class Capability(IntEnum):
    """Those that otelbpf has to do with, by their bits: linux/capability.h."""

    CAP_DAC_OVERRIDE = 1
    CAP_DAC_READ_SEARCH = 2
    CAP_NET_BIND_SERVICE = 10
    CAP_NET_ADMIN = 12
    CAP_SYS_PTRACE = 19
    CAP_SYS_ADMIN = 21
    CAP_BPF = 39
    CAP_CHECKPOINT_RESTORE = 40


@dataclass(frozen=True)
class Right:
    """A capability, and what for."""

    capability: Capability
    purpose: str

    def __str__(self) -> str:
        return f"{self.capability.name} ({self.purpose})"


#: Without these nothing is measured. CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON.
TO_START = (
    Right(Capability.CAP_NET_ADMIN, "loading programs that see packets"),
    Right(Capability.CAP_SYS_ADMIN, "loading programs, proving hooks, entering namespaces"),
)
#: What looking at other processes takes. Without these they are measured, but not known.
TO_LOOK = (
    Right(
        Capability.CAP_SYS_PTRACE,
        "which program a process runs, its environment, where it keeps its thread contexts",
    ),
    Right(
        Capability.CAP_DAC_READ_SEARCH,
        "the environment and the private files of other users' processes",
    ),
    Right(
        Capability.CAP_CHECKPOINT_RESTORE,
        "files that processes run and that were deleted or replaced since",
    ),
)
_TO_RUN_PROGRAMS = Right(Capability.CAP_BPF, "ending requests that have gone silent")
_TO_FILTER = Right(
    Capability.CAP_NET_ADMIN,
    "TC filters on interfaces that come back, and taking them off at the end",
)
_TO_SEE_LINES = Right(
    Capability.CAP_NET_ADMIN, "seeing whose programs come before otelbpf's at traffic control"
)
_TO_ENTER = Right(Capability.CAP_SYS_ADMIN, "entering the measured network namespace")
_TO_WRITE = Right(Capability.CAP_DAC_OVERRIDE, "writing files in other users' directories")
_TO_LISTEN = Right(Capability.CAP_NET_BIND_SERVICE, "listening on a port below 1024")


def held() -> frozenset[Capability]:
    """Which of them the calling thread has."""
    return frozenset(each for each in Capability if _effective() >> each & 1)


def had(rights: Iterable[Right]) -> tuple[Right, ...]:
    """Those of them that the calling thread has."""
    have = held()
    return tuple(right for right in rights if right.capability in have)


def require() -> None:
    """Raises KernelError where this process may not load and attach programs."""
    _require(TO_START)


def missing() -> list[Right]:
    """What is missing of what it takes to start."""
    return _missing(TO_START)


def require_to_look() -> None:
    """Raises KernelError where this process cannot see all that it might of others."""
    _require(TO_LOOK)


def _require(rights: tuple[Right, ...]) -> None:
    lacking = _missing(rights)
    if lacking:
        raise KernelError(
            f"this process does not have {' and '.join(map(str, lacking))}",
            "run otelbpf as root (`sudo otelbpf …`), or give its container these capabilities",
        )


def _missing(rights: tuple[Right, ...]) -> list[Right]:
    have = held()
    return [right for right in rights if right.capability not in have]


def kept(
    *,
    programs: bool = False,
    filters: bool = False,
    namespace: bool = False,
    low_port: bool = False,
    files: Iterable[Path | None] = (),
) -> tuple[Right, ...]:
    """What an agent keeps once it has attached, as far as it had it.

    Args:
        programs: it takes a right to run a program that was loaded before.
        filters: traffic control is watched by filters, not by links: to attach these takes no
            right.
        namespace: another network namespace than the agent's own is measured.
        low_port: it is about to listen on a port below 1024.
        files: that it writes; None is none.
    """
    directories = {path.absolute().parent for path in files if path is not None}
    return (
        *TO_LOOK,
        *[_TO_RUN_PROGRAMS] * programs,
        _TO_FILTER if filters else _TO_SEE_LINES,
        *[_TO_ENTER] * namespace,
        *[_TO_LISTEN] * low_port,
        *[_TO_WRITE] * (not with_only((), lambda: all(map(_may_write, directories)))),
    )


def _may_write(directory: Path) -> bool:
    return os.access(directory, os.W_OK | os.X_OK, effective_ids=True)


def give_up(keep: Collection[Capability]) -> None:
    """The calling thread has these from here on, as far as it had them, and so have its children.

    It can get no others by starting a program either.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for number in set(range(_CAPABILITIES_MOST)) - set(keep):
        # Refused without CAP_SETPCAP. Then what it sets no bounds to is not to be had either,
        # because of no_new_privs.
        libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    bits = _effective() & _bits(keep)
    sets = _Sets(*(bits & 0xFFFFFFFF,) * 2, 0, *(bits >> 32,) * 2, 0)
    _call(libc.capset, _OWN, sets)
    _call(libc.prctl, _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def with_only(keep: Collection[Capability], function: Callable[[], T]) -> T:
    """Calls `function` in a thread that has only these rights, as have those that it starts."""

    def call() -> T:
        give_up(keep)
        return function()

    with ThreadPoolExecutor(1, thread_name_prefix="otelbpf-rights") as pool:
        return pool.submit(call).result()


def threads_with_more(keep: Collection[Capability]) -> list[str]:
    """The names of this process's threads that have other rights than these.

    One that has been joined may take a moment to end.
    """
    end_s = time.monotonic() + _ENDING_S
    while (names := _names_with_more(keep)) and time.monotonic() < end_s:
        time.sleep(0.01)
    return names


def _names_with_more(keep: Collection[Capability]) -> list[str]:
    names = []
    for thread in _THREADS.iterdir():
        try:
            lines = (thread / "status").read_text().splitlines()
            (permitted,) = (line.split()[1] for line in lines if line.startswith("CapPrm:"))
            if int(permitted, 16) & ~_bits(keep):
                names.append((thread / "comm").read_text().strip())
        except OSError:  # it has just ended
            continue
    return names


def _bits(capabilities: Collection[Capability]) -> int:
    return sum(1 << each for each in set(capabilities))


def _effective() -> int:
    """What the calling thread has, and can make use of at once."""
    sets = _Sets()
    _call(ctypes.CDLL(None, use_errno=True).capget, _OWN, sets)
    return sets[0] | sets[3] << 32


def _call(function: Callable[..., int], *arguments: object) -> None:
    if function(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

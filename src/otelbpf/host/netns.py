# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: finding one, and doing something inside it."""

from __future__ import annotations

import ctypes
import functools
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from otelbpf.errors import KernelError, UsageError

_RUN_NETNS = Path("/run/netns")
_CLONE_NEWNET = 0x40000000

T = TypeVar("T")


@dataclass(frozen=True)
class Netns:
    """A network namespace.

    Attributes:
        name: as the user wrote it; empty for the agent's own.
        path: a file that stands for it.
    """

    name: str
    path: Path

    @property
    def cookie(self) -> int:
        """The kernel's number for it, which no other namespace ever gets."""
        return self.run(current_cookie)

    def run(self, function: Callable[[], T]) -> T:
        """Calls `function` inside this namespace, where the calling thread is meanwhile.

        Raises:
            KernelError: the namespace is gone, or may not be entered.
        """
        if not self.name:
            return function()
        # A thread of its own would be out of the way, but costs the kernel a hundred times as much.
        own = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            _enter(self.path)
            try:
                return function()
            finally:
                _leave(own)
        finally:
            os.close(own)


def find_netns(name: str | None) -> Netns:
    """The namespace called `name`, at the path `name`, or the agent's own for None.

    Raises:
        UsageError: there is none.
    """
    if name is None:
        path = Path("/proc/self/ns/net")
    elif "/" in name:
        path = Path(name)
    else:
        path = _RUN_NETNS / name
    try:
        status = path.stat()
        own = Path("/proc/self/ns/net").stat()
    except OSError as error:
        raise UsageError(
            f"no network namespace {name!r} ({path}: {error.strerror}): "
            "`ip netns list` shows the named ones; a path such as /proc/PID/ns/net works too"
        ) from error
    if status.st_dev != own.st_dev or _kind_of_namespace(path) != _CLONE_NEWNET:
        raise UsageError(
            f"{path} is not a network namespace: give a name from `ip netns list` or a path "
            "such as /proc/PID/ns/net"
        )
    return Netns(name or "", path)


def _kind_of_namespace(path: Path) -> int:
    import fcntl

    ns_get_nstype = 0xB703
    with open(path) as file:
        return fcntl.ioctl(file, ns_get_nstype)


def current_cookie() -> int:
    """The number of the calling thread's namespace.

    Raises:
        KernelError: the kernel gives them none.
    """
    so_netns_cookie = 71  # since 5.14; Python has no name for it
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            cookie = probe.getsockopt(socket.SOL_SOCKET, so_netns_cookie, 8)
        except OSError as error:
            raise KernelError(
                f"this kernel ({os.uname().release}) has no network namespace cookies",
                "use Linux 5.14 or later",
            ) from error
    return int.from_bytes(cookie, "little")


def _enter(path: Path) -> None:
    try:
        fd = os.open(path, os.O_RDONLY)
    except OSError as error:
        raise KernelError(
            f"the network namespace {path} is gone ({error.strerror}): was it deleted, or has its "
            "process ended?"
        ) from error
    try:
        _setns(fd)
    finally:
        os.close(fd)


def _leave(own: int) -> None:
    try:
        _setns(own)
    except KernelError as error:
        # Nobody may go on as if nothing had happened: the thread is in another network.
        raise RuntimeError("cannot leave the network namespace") from error


@functools.cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _setns(fd: int) -> None:
    if _libc().setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise KernelError(
            f"cannot enter the network namespace: {os.strerror(number)}; it takes CAP_SYS_ADMIN"
        )

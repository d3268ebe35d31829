# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: finding one, and doing something inside it."""

from __future__ import annotations

import ctypes
import os
import socket
import threading
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
        """Calls `function` inside this namespace: in a thread that enters it, if need be."""
        if not self.name:
            return function()
        results: list[T] = []
        errors: list[BaseException] = []

        def enter_and_call() -> None:
            try:
                _enter(self.path)
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter_and_call, name="otelbpf-netns")
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]


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
        with open(path) as file:
            _setns(file.fileno())
    except OSError as error:
        raise KernelError(
            f"the network namespace {path} is gone ({error.strerror}): was it deleted, or has its "
            "process ended?"
        ) from error


def _setns(fd: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(fd, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise KernelError(
            f"cannot enter the network namespace: {os.strerror(number)}; it takes CAP_SYS_ADMIN"
        )

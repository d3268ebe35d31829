# SPDX-License-Identifier: Apache-2.0
"""Finds out whether attached programs run at all, by an exchange over TCP of our own.

A probe on a function is taken by the kernel and yet never runs where the
compiler inlined the function into its callers: its symbol is still there.
"""

from __future__ import annotations

import os
import socket

from otelbpf.kernel import bpf_info, libbpf

_LOOPBACK = ("127.0.0.1", 0)
_TIMEOUT_S = 2.0


def silent_programs(program_fds: list[int]) -> set[int]:
    """Those of the attached programs that an exchange over loopback does not run.

    Empty where that cannot be found out: the kernel does not count runs, or
    loopback is down.
    """
    try:
        counting = libbpf.enable_run_counts()
    except OSError:
        return set()
    try:
        before = {fd: bpf_info.program_info(fd).runs for fd in program_fds}
        _exchange()
        return {fd for fd, runs in before.items() if bpf_info.program_info(fd).runs == runs}
    except OSError:
        return set()
    finally:
        os.close(counting)


def _exchange() -> None:
    """Connects, sends by send() and by sendfile(), reads, closes."""
    with (
        socket.create_server(_LOOPBACK) as listener,
        socket.create_connection(listener.getsockname(), _TIMEOUT_S) as client,
        listener.accept()[0] as server,
        open(os.memfd_create("otelbpf"), "wb+", buffering=0) as file,
    ):
        server.settimeout(_TIMEOUT_S)
        client.sendall(b"1")
        server.recv(1)
        file.write(b"2")
        os.sendfile(server.fileno(), file.fileno(), 0, 1)
        client.recv(1)

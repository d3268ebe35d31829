# SPDX-License-Identifier: Apache-2.0
"""Children that end with their parent, however that ends."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

from errors import FetchError, InputError

_PR_SET_PDEATHSIG = 1


def dies_with_us() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the child when this process is gone."""
    us = os.getpid()
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def before_exec() -> None:
        failed = prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if failed or os.getppid() != us:
            os._exit(1)

    return before_exec


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Runs a command and returns what it printed.

    Raises:
        FetchError: it failed; with its last words.
        InputError: it is not installed.
    """
    # Where a user's own path does not lead, but modprobe is.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    try:
        done = subprocess.run(
            command, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env=os.environ | {"PATH": path}, preexec_fn=dies_with_us(),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise InputError(f"{command[0]} is not there: run scripts/setup --test") from error
    if done.returncode:
        why = done.stderr.strip() or f"exit code {done.returncode}"
        raise FetchError(f"{' '.join(map(str, command))}: {why}")
    return done.stdout

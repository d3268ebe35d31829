# SPDX-License-Identifier: Apache-2.0
"""Guests that run a selection of the kernel tests with what processor time others leave."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from children import dies_with_us

_COMMAND = Path(__file__).resolve().parent / "kernel-tests"
# pytest's arguments.
_SELECTION = ("-m", "guest")
_LOWEST_PRIORITY = 19


class Guest:
    """The kernel tests on one kernel, under way."""

    def __init__(self, kernel: str) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 (close() does)
        self._process = subprocess.Popen(
            [_COMMAND, kernel, "--color=no", "--tb=short", *_SELECTION],
            stdin=subprocess.DEVNULL, stdout=self._said, stderr=subprocess.STDOUT,
            preexec_fn=_in_the_background(),
        )  # fmt: skip

    def wait(self, timeout_s: float) -> tuple[int, str]:
        """Its exit code, and all that it printed."""
        code = self._process.wait(timeout_s)
        self._said.seek(0)
        return code, self._said.read()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._said.close()


def _in_the_background() -> Callable[[], None]:
    before_exec = dies_with_us()

    def lower() -> None:
        os.nice(_LOWEST_PRIORITY)
        before_exec()

    return lower

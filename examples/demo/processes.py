# SPDX-License-Identifier: Apache-2.0
"""Starting the demo's processes, waiting until they are ready, stopping them."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STOP_TIMEOUT_S = 15.0
# How often a condition that cannot be waited for is looked at.
_LOOK_S = 0.02


class ProcessError(Exception):
    """A process did not start, or did not become ready; the message has its last words."""


@dataclass(frozen=True)
class Process:
    """A child of the demo; its standard output and error go to files."""

    name: str
    popen: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def wait_until(self, ready: Callable[["Process"], bool], timeout_s: float) -> None:
        """Wait until ``ready(self)``.

        Raises:
            ProcessError: it ended first, or was not ready in time.
        """
        for _ in range(round(timeout_s / _LOOK_S)):
            if ready(self):
                return
            # To wait for its end is the pause between two looks.
            try:
                code = self.popen.wait(_LOOK_S)
            except subprocess.TimeoutExpired:
                continue
            raise ProcessError(
                f"{self.name} ended with exit code {code} before it was ready{self.said()}"
            )
        raise ProcessError(f"{self.name} was not ready after {timeout_s:g} s{self.said()}")

    def printed_line(self) -> bool:
        """Whether it has printed a whole line, which is how the services say that they listen."""
        return b"\n" in self.stdout.read_bytes()

    def finish(self, timeout_s: float) -> str:
        """Wait for its end.

        Returns:
            What it wrote to its standard output.
        Raises:
            ProcessError: it failed, or did not end in time.
        """
        try:
            code = self.popen.wait(timeout_s)
        except subprocess.TimeoutExpired as error:
            raise ProcessError(
                f"{self.name} was not done after {timeout_s:g} s{self.said()}"
            ) from error
        if code != 0:
            raise ProcessError(f"{self.name} failed with exit code {code}{self.said()}")
        return self.stdout.read_text()

    def stop(self, number: signal.Signals) -> int:
        """Send it this signal, unless it has ended; wait, and kill it if it does not mind.

        Returns:
            Its exit code.
        """
        if self.popen.poll() is None:
            self.popen.send_signal(number)
        try:
            return self.popen.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            return self.popen.wait()

    def said(self) -> str:
        """The end of what it wrote to standard error, to be put behind a message."""
        lines = self.stderr.read_text(errors="replace").strip().splitlines()
        return ":\n  " + "\n  ".join(lines[-15:]) if lines else ""


@contextmanager
def running(
    name: str,
    command: Sequence[str | Path],
    directory: Path,
    environment: Mapping[str, str] | None = None,
    stop_with: signal.Signals = signal.SIGTERM,
) -> Iterator[Process]:
    """Run a process until the end of the block.

    Args:
        directory: where its output files go.
        environment: in addition to the demo's own; no OTEL_* variable is handed down.
    Raises:
        ProcessError: it cannot be started.
    """
    inherited = {key: value for key, value in os.environ.items() if not key.startswith("OTEL_")}
    stdout, stderr = directory / f"{name}.out", directory / f"{name}.err"
    # setpriv --pdeathsig: should the demo be killed, its children get the signal they know.
    # A session of their own: Ctrl-C reaches the demo alone, which stops them in order.
    # env: who is started in a shell's background ignores SIGINT, and would hand that down.
    parent_death = [
        "setpriv",
        "--pdeathsig",
        stop_with.name.removeprefix("SIG"),
        "--",
        "env",
        "--default-signal",
        "--",
    ]
    with stdout.open("wb") as out, stderr.open("wb") as err:
        try:
            popen = subprocess.Popen(
                [*parent_death, *command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**inherited, **(environment or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise ProcessError(f"cannot start {name}: {error}") from error
    process = Process(name, popen, stdout, stderr)
    try:
        yield process
    finally:
        process.stop(stop_with)


@contextmanager
def signals_as_exit() -> Iterator[None]:
    """Leave the block by an exception on SIGINT and SIGTERM, so that all is cleaned up.

    A second signal is ignored: cleaning up has begun and takes a moment.

    Raises:
        SystemExit: 128 + the signal's number, as a shell would say it.
    """

    def leave(number: int, _frame: object) -> None:
        for each in before:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

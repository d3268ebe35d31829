# SPDX-License-Identifier: Apache-2.0
"""A pseudo terminal with a command in it, and what its screen shows."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyte
from support.waiting import DEADLINE_S, LONG_S, wait_until

_ALTERNATE_SCREEN = b"\x1b[?1049"
_CURSOR = b"\x1b[?25"


class Terminal:
    """A terminal that a command has for its own.

    Attributes:
        said: all that was written to it.
    """

    def __init__(self, master: int, slave: int, columns: int, lines: int) -> None:
        self._master, self._slave = master, slave
        self._screen = pyte.Screen(columns, lines)
        self._stream = pyte.ByteStream(self._screen)
        self._lock = threading.Lock()
        self.said = b""
        self.resize(columns, lines)
        self._mode_before = termios.tcgetattr(slave)

    def takes_keys(self) -> bool:
        """Is what is typed read at once, and not shown?"""
        local = termios.tcgetattr(self._slave)[3]
        return not local & (termios.ICANON | termios.ECHO)

    @property
    def lines(self) -> list[str]:
        """What the screen shows."""
        with self._lock:
            return [line.rstrip() for line in self._screen.display]

    def line_of(self, text: str) -> str:
        """The first line that has this text; empty: none has."""
        return next((line for line in self.lines if text in line), "")

    def shows(self, *texts: str) -> bool:
        """Is each of them in a line of the screen?"""
        return all(self.line_of(text) for text in texts)

    def wait_for(self, *texts: str) -> None:
        """Waits until the screen shows them."""
        wait_until(
            lambda: self.shows(*texts),
            f"the screen shows {texts}",
            state=lambda: "\n" + "\n".join(self.lines),
            deadline_s=LONG_S,
        )

    def press(self, keys: str) -> None:
        """Types."""
        os.write(self._master, keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        """The window has another size, of which whoever is in it is told."""
        with self._lock:
            self._screen.resize(lines, columns)
        fcntl.ioctl(self._slave, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def assert_restored(self) -> None:
        """Its modes are as they were, its own screen is back, and the cursor is seen."""
        assert termios.tcgetattr(self._slave) == self._mode_before
        for switch, last in ((_ALTERNATE_SCREEN, b"l"), (_CURSOR, b"h")):
            _, found, after = self.said.rpartition(switch)
            assert found and after[:1] == last, self.said[-200:]

    def read(self) -> bool:
        """Takes in what was written; waits a moment for it, and says if there was any."""
        ready, _, _ = select.select([self._master], [], [], 0.05)
        if ready:
            data = os.read(self._master, 1 << 16)
            with self._lock:
                self.said += data
                self._stream.feed(data)
        return bool(ready)


@dataclass(frozen=True)
class InTerminal:
    """A command, and the terminal that it has."""

    process: subprocess.Popen[bytes]
    terminal: Terminal
    reader: threading.Thread

    def wait(self) -> int:
        """Waits until it ends, and all it wrote is read; its exit code."""
        code = self.process.wait(DEADLINE_S)
        self.reader.join(DEADLINE_S)
        return code


@contextlib.contextmanager
def in_terminal(
    command: Sequence[str | Path], *, columns: int = 100, lines: int = 30
) -> Iterator[InTerminal]:
    """Runs a command in a terminal of its own; ends it, if it has not, with the block."""
    master, slave = pty.openpty()
    terminal = Terminal(master, slave, columns, lines)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR")
    }
    process = subprocess.Popen(
        # Its controlling terminal: Ctrl-C is a signal there. Under nohup the tests ignore SIGHUP,
        # and would hand that down.
        ["setsid", "--ctty", "env", "--default-signal", "--", *command],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env={**environment, "TERM": "xterm-256color", "COLORTERM": "truecolor"},
    )

    def read() -> None:
        # What it wrote last is there when it has ended.
        while terminal.read() or process.poll() is None:
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        yield InTerminal(process, terminal, reader)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(DEADLINE_S)
        reader.join(DEADLINE_S)
        os.close(master)
        os.close(slave)

# SPDX-License-Identifier: Apache-2.0
"""Files that hold whole lines only, whatever the disk does, and that heal when they are opened."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import logging
import os
import select
import stat
import sys
import threading
from functools import cache
from pathlib import Path

from otelbpf.errors import UsageError
from otelbpf.export.answers import Answer, Verdict

_log = logging.getLogger(__name__)

# As far back as the end of the last whole line is looked for.
_LONGEST_TAIL = 64 << 20
_BLOCK = 1 << 20
# How every line of otlp_json_file begins.
_OURS = b'{"resource'
# Nobody reads any more, or nothing can be written there at all.
_FOR_GOOD = frozenset((errno.EPIPE, errno.EBADF, errno.EINVAL, errno.ENXIO))


class WholeLines:
    """A door to a file: what is sent there is written whole, or not at all. Thread-safe.

    Args:
        fd: what is written to; others may append to it as well.
        name: for people.
    """

    def __init__(self, fd: int, name: str) -> None:
        self._fd = fd
        self._name = name
        self._writing = threading.Lock()
        # Does the last line lack its end?
        self._is_torn = False
        if _is_file(fd):
            self._heal()

    def send(self, lines: bytes, within_s: float) -> Answer:
        """Appends lines, each with its end."""
        with self._writing:
            try:
                self._write(b"\n" + lines if self._is_torn else lines)
            except OSError as error:
                verdict = Verdict.REFUSED if error.errno in _FOR_GOOD else Verdict.LATER
                return Answer(verdict, error.strerror or str(error))
            self._is_torn = False
        return Answer(Verdict.TAKEN)

    def close(self) -> None:
        """Nothing is kept back; the file is left open, as what hangs may still write to it."""

    def _write(self, octets: bytes) -> None:
        written = 0
        try:
            while written < len(octets):
                try:
                    written += os.write(self._fd, memoryview(octets)[written:])
                except BlockingIOError:
                    _wait_for_room(self._fd)
        except OSError:
            if written:
                self._take_back(written)
            raise

    def _take_back(self, written: int) -> None:
        """Removes a part of a line, unless somebody else's follows, or it is on its way already."""
        try:
            end = os.lseek(self._fd, 0, os.SEEK_CUR)
            if _is_file(self._fd) and os.fstat(self._fd).st_size == end:
                os.ftruncate(self._fd, end - written)
                os.lseek(self._fd, end - written, os.SEEK_SET)
                return
        except OSError:  # no file that can be shortened
            pass
        self._is_torn = True

    def _heal(self) -> None:
        """Removes the part of a line that a killed writer has left, or ends a line that lacks that.

        Not while another writer lives: that one may be in the middle of a line.
        """
        size = os.fstat(self._fd).st_size
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            tail = _tail(f"/proc/self/fd/{self._fd}", size) if size else b""
        except OSError:  # another writer lives, or we may not read
            tail = b""
        if tail and _is_part_of_ours(tail):
            os.ftruncate(self._fd, size - len(tail))
            _log.warning(
                "%s ended in the middle of a line, as its writer was killed: these %d bytes are "
                "removed", self._name, len(tail),
            )  # fmt: skip
        elif tail:
            self._is_torn = True
            self.send(b"", 0.0)
        with contextlib.suppress(OSError):
            # For as long as this file is open here.
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)


def open_lines(path: str) -> WholeLines:
    """Opens a file to append to, and heals it.

    Raises:
        UsageError: it cannot be opened.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        return WholeLines(fd, path)
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"cannot write {path} ({why}): let --output name a file in a directory that is there"
        ) from error


@cache
def standard_output() -> WholeLines:
    """Standard output; the same for all, so that lines of two exporters do not mix.

    Raises:
        UsageError: it was closed.
    """
    if sys.__stdout__ is None:
        raise UsageError("standard output is closed, where the exporter is to write: redirect it")
    return WholeLines(1, "standard output")


def _is_file(fd: int) -> bool:
    return stat.S_ISREG(os.fstat(fd).st_mode)


def _wait_for_room(fd: int) -> None:
    """Whoever made the pipe has made it one that does not block."""
    room = select.poll()
    room.register(fd, select.POLLOUT)
    room.poll()


def _tail(path: str, size: int) -> bytes:
    """What follows the last line's end, of a file that lacks one."""
    blocks: list[bytes] = []
    with Path(path).open("rb") as file:
        for first in range(size, max(0, size - _LONGEST_TAIL), -_BLOCK):
            begin = max(0, first - _BLOCK)
            file.seek(begin)
            block = file.read(first - begin)
            _, end, after = block.rpartition(b"\n")
            blocks.append(after)
            if end:
                break
    return b"".join(reversed(blocks))


def _is_part_of_ours(tail: bytes) -> bool:
    if tail[: len(_OURS)] != _OURS[: len(tail)]:
        return False
    try:
        json.loads(tail)
    except ValueError:
        return True
    return False  # whole, but for its end

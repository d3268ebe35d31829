# SPDX-License-Identifier: Apache-2.0
"""The programs at the card and at traffic control, built for this machine: host/host.c."""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, settings

from otelbpf.kernel.records import FORWARDED_TEXT, REQUEST_RECORD, Counter

ROOT = Path(__file__).resolve().parents[2]
_HOST = Path(__file__).parent / "host"
_FLAGS = (
    *("-DHOST_BUILD", "-D_GNU_SOURCE", "-std=gnu11", "-O1", "-g", "-fno-omit-frame-pointer"),
    # Words are loaded from wherever they lie: these machines may.
    *("-fsanitize=address,undefined", "-fno-sanitize=alignment", "-fno-sanitize-recover=all"),
    *("-Wall", "-Wextra", "-Werror", "-Wno-unused-function", "-Wno-unknown-pragmas"),
    *(f"-I{ROOT / 'bpf'}", f"-I{ROOT / 'bpf/shim/include'}", f"-I{_HOST}"),
)


class Event(IntEnum):
    """What happens: enum event of host.c."""

    TO_SERVER = 0
    FROM_SERVER = 1
    FROM_UPSTREAM = 2
    TO_UPSTREAM = 3
    STATE_CHANGES = 4
    ARRIVES = 5


@dataclass(frozen=True)
class Passing:
    """A frame that passes.

    Attributes:
        linear: how many of its bytes lie where a program may look at them without a copy; the rest
            are in other pages.
        within: not 0: it passes on another processor, when the next event asks for its n-th help of
            the kernel's: for the time, or for bytes of its packet.
    """

    event: Event
    frame: bytes
    linear: int
    within: int = 0

    def __bytes__(self) -> bytes:
        head = struct.pack("IIII", self.event, self.linear, len(self.frame), self.within)
        return head + self.frame


class SocketState(IntEnum):
    """As the kernel numbers them."""

    ESTABLISHED = 1
    CLOSE = 7
    CLOSE_WAIT = 8


@dataclass(frozen=True)
class StateChange:
    """A socket of this machine's changes its state.

    Attributes:
        local, peer: addresses, IPv4, and ports.
        rcv_nxt, write_seq: the next byte to come and to be written.
        within: as Passing's.
    """

    earlier: SocketState
    state: SocketState
    local: tuple[bytes, int]
    peer: tuple[bytes, int]
    rcv_nxt: int = 0
    write_seq: int = 0
    error: int = 0
    within: int = 0

    def __bytes__(self) -> bytes:
        change = struct.pack(
            "II4s4sHHIII", self.earlier, self.state, self.peer[0], self.local[0],
            self.peer[1], self.local[1], self.rcv_nxt % 2**32, self.write_seq % 2**32, self.error,
        )  # fmt: skip
        return struct.pack("IIII", Event.STATE_CHANGES, 0, len(change), self.within) + change


@dataclass(frozen=True)
class Outcome:
    """What the programs made of a conversation, once all that was in flight was swept.

    Attributes:
        records: (n,) REQUEST_RECORD, in the order in which they were submitted.
        counts: by enum counter, those that are not 0.
        forwarded: (n,) FORWARDED_TEXT, at the records' places.
    """

    records: np.ndarray
    counts: dict[Counter, int]
    forwarded: np.ndarray

    @property
    def lost(self) -> int:
        """Requests that were seen and are in no record."""
        return sum(n for counter, n in self.counts.items() if counter.name.startswith("LOST_"))


def drawn(examples: int) -> settings:
    """How Hypothesis draws what is played: the same ones each time, for CI and for you."""
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )


def build(directory: Path, *flags: str) -> Path:
    """Builds the executable there, with both sanitizers; a warning is an error."""
    executable = directory / "host"
    command = ["gcc", *_FLAGS, *flags, str(_HOST / "host.c"), "-o", str(executable)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return executable


class HostPrograms:
    """The executable, running: one conversation after the other, each as if it were the first.

    Args:
        connection_sets: of the table of connections.
    """

    def __init__(self, executable: Path, connection_sets: int = 1) -> None:
        self._executable = executable
        self._connection_sets = connection_sets
        self._process: subprocess.Popen[bytes] | None = None

    def play(self, conversation: Iterable[Passing | StateChange]) -> Outcome:
        """Has all of this happen, in this order.

        Raises:
            AssertionError: a sanitizer has found something, or the programs did what none may.
        """
        events = [bytes(each) for each in conversation]
        process = self._process or self._start()
        assert process.stdin and process.stdout
        try:
            process.stdin.write(struct.pack("I", len(events)) + b"".join(events))
            process.stdin.flush()
            counts = np.frombuffer(self._take(8 * len(Counter)), np.uint64)
            (records,) = struct.unpack("I", self._take(4))
            octets = self._take(records * REQUEST_RECORD.itemsize)
            texts = self._take(records * FORWARDED_TEXT.itemsize)
        except (BrokenPipeError, EOFError):
            self._process = None
            said = process.communicate()[1].decode(errors="replace")
            raise AssertionError(f"{self._executable} has ended:\n{said[:4000]}") from None
        return Outcome(
            np.frombuffer(octets, REQUEST_RECORD),
            {counter: int(counts[counter]) for counter in Counter if counts[counter]},
            np.frombuffer(texts, FORWARDED_TEXT),
        )

    def close(self) -> None:
        """Ends it."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        self._process = subprocess.Popen(
            [self._executable],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={
                "ASAN_OPTIONS": "detect_leaks=0",
                "CONNECTION_SETS": str(self._connection_sets),
            },
        )  # fmt: skip
        return self._process

    def _take(self, count: int) -> bytes:
        assert self._process and self._process.stdout
        octets = self._process.stdout.read(count)
        if len(octets) < count:
            raise EOFError
        return octets

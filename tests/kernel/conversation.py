# SPDX-License-Identifier: Apache-2.0
"""A made-up connection whose segments a test hands over in an order of its choosing."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from frames import Wire
from support.frames import ACK, Frame


@dataclass
class Conversation:
    """One made-up connection; positions count bytes from the first one of either side."""

    wire: Wire
    frame: Frame
    #: position -> (CLOCK_MONOTONIC ns before it was first handed over, and after).
    handed_over: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: The same of what the server answers.
    handed_back: dict[int, tuple[int, int]] = field(default_factory=dict)
    #: Where each segment is seen.
    interfaces: int = 1

    def asked(self, data: bytes, at: int, *, acknowledging: int = 0, flags: int = ACK) -> Frame:
        """The client's segment whose first byte is its byte number `at`, not handed over yet."""
        return replace(
            self.frame,
            payload=data,
            seq=self.frame.seq + at,
            ack_seq=self.frame.ack_seq + acknowledging,
            flags=flags,
        )

    def ask(self, data: bytes, at: int, *, acknowledging: int = 0, flags: int = ACK) -> None:
        """The same, handed over."""
        self.wire.establish(self.frame)
        before_ns = time.monotonic_ns()
        self.wire.deliver(self.asked(data, at, acknowledging=acknowledging, flags=flags))
        if data:
            self.handed_over.setdefault(at, (before_ns, time.monotonic_ns()))

    def answer(self, data: bytes, at: int, *, acknowledging: int = 0, flags: int = ACK) -> None:
        """The server's segment whose first byte is its byte number `at`."""
        self.wire.establish(self.frame)
        before_ns = time.monotonic_ns()
        self.wire.emit(
            self.frame.turned(
                payload=data,
                seq=self.frame.ack_seq + at,
                ack_seq=self.frame.seq + acknowledging,
                flags=flags,
            )
        )
        self.handed_back.setdefault(at, (before_ns, time.monotonic_ns()))


def cut(data: bytes, *places: int) -> list[tuple[int, bytes]]:
    """The segments of `data` cut at these places, each with its position."""
    bounds = itertools.pairwise([0, *places, len(data)])
    return [(start, data[start:end]) for start, end in bounds if start < end]


def in_order(data: bytes, at: int, order: str) -> list[tuple[bytes, int]]:
    """Segments of `data`, each with its position: "1" and "2" are its parts, "w" is the whole."""
    segments = {"1": (data[:at], 0), "2": (data[at:], at), "w": (data, 0)}
    return [segments[each] for each in order]


def early(order: Iterable[tuple[int, bytes]]) -> int:
    """How many of the segments come before a byte that precedes them."""
    seen: set[int] = set()
    count = 0
    for at, data in order:
        count += len(seen & set(range(at))) < at
        seen |= set(range(at, at + len(data)))
    return count

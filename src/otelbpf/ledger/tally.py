# SPDX-License-Identifier: Apache-2.0
"""What became of every request: exported, sampled out, or lost for a named reason."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from otelbpf.kernel.records import Counter


class Lost(StrEnum):
    """Why a request that the kernel saw was not exported."""

    RING_FULL = "ring_full"
    PIPELINE_FULL = "pipeline_full"
    TABLE_FULL = "table_full"
    PARSER = "parser"
    CLOSED = "closed_before_head"
    EVICTED = "evicted"
    UNTAKEN = "untaken"
    STOPPED = "unanswered_at_stop"
    UNREAD = "unread_at_stop"
    QUEUE_FULL = "queue_full"
    REJECTED = "rejected"
    REFUSED = "refused"
    TOO_LARGE = "too_large"
    EXPORT_FAILED = "export_failed"


_IN_KERNEL = {
    Counter.LOST_RING_FULL: Lost.RING_FULL,
    Counter.LOST_PIPELINE_FULL: Lost.PIPELINE_FULL,
    Counter.LOST_TABLE_FULL: Lost.TABLE_FULL,
    Counter.LOST_PARSER: Lost.PARSER,
    Counter.LOST_CLOSED: Lost.CLOSED,
    Counter.LOST_EVICTED: Lost.EVICTED,
    Counter.LOST_UNTAKEN: Lost.UNTAKEN,
    Counter.LOST_STOPPED: Lost.STOPPED,
}

# What was left apart, by its name in Sums.joins: of one, of several, and why.
_NOT_JOINED = {
    "marks_unknown": (
        "span of an application has no request's span above it",
        "spans of applications have no request's span above them",
        "not of a request in flight, or not of the trace that it carries",
    ),
    "marks_ambiguous": (
        "span of an application has no request's span above it",
        "spans of applications have no request's span above them",
        "several requests were in flight on the connection, so which one it was of is not known",
    ),
    "causes_ambiguous": (
        "request to an upstream starts a trace of its own",
        "requests to upstreams start traces of their own",
        "which request it was for is not known, as a thread may have several in hand where it does "
        "not wait for each one's bytes",
    ),
}


def not_joined(joins: Mapping[str, int]) -> list[str]:
    """What is said of what was not joined.

    Args:
        joins: as in Sums.
    """
    told = []
    for name, (one, several, why) in _NOT_JOINED.items():
        if count := joins.get(name, 0):
            told.append(f"{count:,} {one if count == 1 else several}: {why}")
    return told


class Gap(StrEnum):
    """Why an interface that was asked for is not measured."""

    #: There is none of this name.
    GONE = "gone"
    #: The network namespace has ended.
    NAMESPACE_GONE = "namespace_gone"
    #: Somebody's program in front of otelbpf's keeps packets from it.
    BEHIND = "behind"
    #: The kernel did not let otelbpf attach to it.
    REFUSED = "refused"


@dataclass(frozen=True)
class Coverage:
    """Whether an interface is measured.

    Attributes:
        gap: why it is not, at the moment; None: it is.
        unmeasured_s: for how long it was not, by reason.
        gap_since_s: when the gap began, on the monotonic clock; 0 where there is none.
    """

    gap: Gap | None = None
    unmeasured_s: Mapping[Gap, float] = field(default_factory=dict)
    gap_since_s: float = 0.0

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        seconds = {gap.value: round(seconds, 3) for gap, seconds in self.unmeasured_s.items()}
        return {"unmeasured": self.gap and self.gap.value, "unmeasured_s": seconds}


@dataclass(frozen=True)
class Sums:
    """The sums at one moment, in requests.

    Attributes:
        seen: by the kernel.
        ignored: of those that are sampled out, the ones that would have been exported were they
            not of a route that is not to be told.
        in_flight: neither finished nor lost yet, or finished and not yet read,
            queued or on their way to the collector; 0 once the agent has stopped.
        missed: how often a hook was passed and its program not run, by hook.
        joins: what was joined to a request, and what was not since that was not certain: marks
            are applications' words, causes are the requests that those to upstreams were for.
        segments: those that were left alone, by why: stray ones came to a measured port, or left
            for an upstream, and no socket of this host has their connection; with unasked ones a
            server speaks where no request of its client's was seen; uncertain ones may begin a
            request, and it is not known whether one begins there.
    """

    seen: int
    exported: int
    sampled_out: int
    lost: dict[Lost, int]
    connections: dict[str, int] = field(default_factory=dict)
    missed: dict[str, int] = field(default_factory=dict)
    joins: dict[str, int] = field(default_factory=dict)
    interfaces: dict[str, Coverage] = field(default_factory=dict)
    segments: dict[str, int] = field(default_factory=dict)
    ignored: int = 0

    @property
    def in_flight(self) -> int:
        """What is neither of the three yet."""
        return self.seen - self.exported - self.sampled_out - sum(self.lost.values())

    def as_json(self) -> str:
        """One JSON object; reasons that lost nothing and hooks that missed nothing are left out."""
        return json.dumps(
            {
                "seen": self.seen,
                "exported": self.exported,
                "sampled_out": self.sampled_out,
                "ignored": self.ignored,
                "lost": {reason.value: count for reason, count in self.lost.items() if count},
                "in_flight": self.in_flight,
                "connections": self.connections,
                "segments": self.segments,
                "missed": {hook: count for hook, count in self.missed.items() if count},
                "joins": self.joins,
                "interfaces": {name: each.as_dict() for name, each in self.interfaces.items()},
            }
        )

    def __str__(self) -> str:
        reasons = ", ".join(f"{reason} {count}" for reason, count in self.lost.items() if count)
        lost = sum(self.lost.values())
        text = (
            f"seen {self.seen} = exported {self.exported} + sampled out {self.sampled_out}"
            + (f" ({self.ignored} by --ignore-route)" if self.ignored else "")
            + f" + lost {lost}"
            + (f" ({reasons})" if reasons else "")
        )
        return text + (f" + in flight {self.in_flight}" if self.in_flight else "")


class Tally:
    """Counts in user space what happens to requests after the kernel. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._exported = 0
        self._sampled_out = 0
        self._ignored = 0
        self._lost: dict[Lost, int] = {}

    def export(self, count: int) -> None:
        """`count` requests were taken by the exporter's other side."""
        with self._lock:
            self._exported += count

    def sample_out(self, count: int) -> None:
        """`count` requests that the kernel has handed over are not kept."""
        with self._lock:
            self._sampled_out += count

    def ignore(self, count: int) -> None:
        """`count` of them would be kept, and are of routes that are not to be told."""
        with self._lock:
            self._sampled_out += count
            self._ignored += count

    def lose(self, reason: Lost, count: int) -> None:
        """`count` requests will not be exported."""
        with self._lock:
            self._lost[reason] = self._lost.get(reason, 0) + count

    def sums(self, counts: dict[Counter, int]) -> Sums:
        """Adds the kernel's counters to ours."""
        with self._lock:
            lost = {reason: counts[counter] for counter, reason in _IN_KERNEL.items()}
            lost.update(self._lost)
            return Sums(
                seen=counts[Counter.SEEN],
                exported=self._exported,
                sampled_out=self._sampled_out + counts[Counter.SAMPLED_OUT],
                ignored=self._ignored,
                lost=lost,
                connections={
                    name.removeprefix("connections_"): count
                    for name, count in _named(counts, "CONNECTIONS_").items()
                },
                joins=_named(counts, "MARKS_", "CAUSES_"),
                segments={
                    name.removeprefix("segments_"): count
                    for name, count in _named(counts, "SEGMENTS_").items()
                },
            )


def _named(counts: dict[Counter, int], *prefixes: str) -> dict[str, int]:
    return {
        counter.name.lower(): counts[counter]
        for counter in Counter
        if counter.name.startswith(prefixes)
    }

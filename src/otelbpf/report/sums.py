# SPDX-License-Identifier: Apache-2.0
"""file -> sums: what became of every request that the kernel saw, as `--sums-file` wrote it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otelbpf.errors import UsageError
from otelbpf.ledger.tally import Lost

#: Why requests were lost, in words.
REASONS = {
    Lost.RING_FULL: "too many finished requests waited for the agent (--ring)",
    Lost.PIPELINE_FULL: "more were in flight on a connection than it holds",
    Lost.TABLE_FULL: "there was no free slot for the request (--connections)",
    Lost.PARSER: "bytes that are no HTTP, or that were missed",
    Lost.CLOSED: "the connection closed before the request\u2019s head was whole",
    Lost.EVICTED: "the connection was forgotten to make room for another (--connections)",
    Lost.UNTAKEN: "the socket did not take what came, or which of several it took is not known",
    Lost.STOPPED: "still unanswered when the agent stopped",
    Lost.UNREAD: "not read yet when the agent stopped",
    Lost.QUEUE_FULL: "the queue to the collector was full (OTEL_BSP_MAX_QUEUE_SIZE)",
    Lost.REJECTED: "the collector took the batch, and not all spans of this request",
    Lost.REFUSED: "the collector refused it for good",
    Lost.TOO_LARGE: "too large for the collector, even alone",
    Lost.EXPORT_FAILED: "the collector, or the disk, did not take it in time",
}


@dataclass(frozen=True)
class RecordedSums:
    """The sums when the agent had stopped, in requests; see otelbpf.accounting.Sums."""

    seen: int
    exported: int
    sampled_out: int
    in_flight: int
    lost: Mapping[str, int]
    connections: Mapping[str, int]
    missed: Mapping[str, int]
    joins: Mapping[str, int]


def read_sums(path: Path) -> RecordedSums:
    """Reads what `otelbpf run --sums-file` wrote.

    Raises:
        UsageError: it cannot be read, or is something else.
    """
    try:
        told = json.loads(path.read_bytes())
        return RecordedSums(
            seen=_count(told["seen"]),
            exported=_count(told["exported"]),
            sampled_out=_count(told["sampled_out"]),
            in_flight=_count(told["in_flight"]),
            lost=_counts(told["lost"]),
            connections=_counts(told["connections"]),
            missed=_counts(told["missed"]),
            joins=_counts(told["joins"]),
        )
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{path} has no sums: --sums takes what `otelbpf run --sums-file` wrote"
        ) from error


def _counts(held: dict[str, Any]) -> dict[str, int]:
    return {str(name): _count(count) for name, count in held.items()}


def _count(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no number of requests")
    return value

# SPDX-License-Identifier: Apache-2.0
"""Whether every request is accounted for: load, spans and the agent's sums must agree."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from demo.ledgers import Decoded
from demo.load import Summary
from demo.look import counted


@dataclass(frozen=True)
class Sums:
    """What the agent counted; every request it saw is in exactly one of the others.

    Attributes:
        lost: reason -> how many.
    """

    seen: int
    exported: int
    sampled_out: int
    lost: Mapping[str, int]

    @property
    def accounted(self) -> int:
        """Exported, sampled out and lost together."""
        return self.exported + self.sampled_out + sum(self.lost.values())

    @classmethod
    def from_json(cls, text: str) -> "Sums":
        """Read the agent's sums file.

        Raises:
            ValueError: it is not one.
        """
        try:
            found = json.loads(text)
            sums = cls(found["seen"], found["exported"], found["sampled_out"], dict(found["lost"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"no sums of an agent: {error!r}") from error
        counts = (sums.seen, sums.exported, sums.sampled_out, *sums.lost.values())
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            raise ValueError(f"sums that are no counts: {text.strip()}")
        return sums

    def as_json(self) -> dict[str, object]:
        """As JSON's types."""
        return {
            "seen": self.seen,
            "exported": self.exported,
            "sampled_out": self.sampled_out,
            "lost": dict(self.lost),
        }


def problems(load: Summary, decoded: Decoded, sums: Sums) -> list[str]:
    """All that is missing or does not agree, each as a part of a sentence."""
    return [*_of_load(load), *_of_spans(load, decoded), *_of_sums(load, decoded, sums)]


def _of_load(load: Summary) -> list[str]:
    found = []
    planned = load.owed.total()
    if load.completed != planned:
        why = f" ({'; '.join(load.errors)})" if load.errors else ""
        found.append(f"the load completed {load.completed} of {planned} requests{why}")
    for (method, path, status), count in (load.outcomes - load.owed).items():
        found.append(
            f"the gateway answered {method} {path} with {status} {count} more times than it should"
        )
    return found


def _of_spans(load: Summary, decoded: Decoded) -> list[str]:
    found = []
    answered: Counter[tuple[str, str, int | None]] = Counter()
    answered.update(load.outcomes)
    spans = Counter((request.method, request.path, request.status) for request in decoded.requests)
    for (method, path, status), count in (answered - spans).items():
        found.append(f"no span for {counted(count, 'request')} {method} {path} {status}")
    for (method, path, status), count in (spans - answered).items():
        what = f"{method} {path} {status or 'without a status'}"
        found.append(f"no request for {counted(count, 'span')} {what}")

    joined = {(request.trace_id, request.parent_span_id) for request in decoded.requests}
    alone = len(load.traceparents - joined)
    if alone:
        found.append(
            f"{alone} of {len(load.traceparents)} requests did not join their caller's trace"
        )
    untiled = sum(not request.tiled for request in decoded.requests)
    if untiled:
        found.append(f"the stages of {counted(untiled, 'request')} do not add up to the whole")
    if decoded.orphans:
        found.append(f"no request for {counted(len(decoded.orphans), 'stage')}")
    return found


def _of_sums(load: Summary, decoded: Decoded, sums: Sums) -> list[str]:
    found = []
    if sums.seen != load.completed:
        found.append(f"the agent saw {sums.seen} of {load.completed} requests")
    if sums.accounted != sums.seen:
        found.append(f"the agent saw {sums.seen} requests but accounts for {sums.accounted}")
    if sums.exported != len(decoded.requests):
        found.append(
            f"the agent exported {sums.exported} requests but {len(decoded.requests)} arrived"
        )
    lost = {reason: count for reason, count in sums.lost.items() if count}
    if lost:
        reasons = ", ".join(f"{count} {reason}" for reason, count in lost.items())
        found.append(f"the agent lost {reasons}")
    return found

# SPDX-License-Identifier: Apache-2.0
"""Whether every request is accounted for: load, spans and the agent's sums must agree."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from demo.ledgers import Decoded
from demo.links import broken_links
from demo.load import Summary
from demo.look import counted
from demo.otlp import Kind
from demo.plan import reaches_a_model
from demo.traces import Trace

# With what the sum of a request's stages ends: its last byte has left, or was read.
_ENDS = {
    Kind.SERVER: ("tc_out", "tc_out_last"),
    Kind.CLIENT: ("read", "read_last"),
}


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


def problems(
    load: Summary, decoded: Decoded, found_traces: Sequence[Trace], sums: Sums
) -> list[str]:
    """All that is missing or does not agree, each as a part of a sentence."""
    return [
        *_of_load(load),
        *_of_spans(load, decoded),
        *_of_traces(load, found_traces),
        *_of_sums(load, decoded, sums),
    ]


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


def calls_owed(load: Summary) -> Counter[tuple[str, str, int | None]]:
    """What the gateway asked its models; each of these is seen at both of its ends."""
    return Counter(
        {outcome: count for outcome, count in load.outcomes.items() if reaches_a_model(*outcome)}
    )


def _of_spans(load: Summary, decoded: Decoded) -> list[str]:
    found = []
    answered: Counter[tuple[str, str, int | None]] = Counter()
    answered.update(load.outcomes)
    for where, requests, owed in (
        ("", decoded.at_gateway, answered),
        (" of the gateway to a model", decoded.calls, calls_owed(load)),
        (" at a model", decoded.at_models, calls_owed(load)),
    ):
        spans = Counter((request.method, request.path, request.status) for request in requests)
        for (method, path, status), count in (owed - spans).items():
            found.append(f"no span for {counted(count, 'request')} {method} {path} {status}{where}")
        for (method, path, status), count in (spans - owed).items():
            what = f"{method} {path} {status or 'without a status'}{where}"
            found.append(f"no request for {counted(count, 'span')} {what}")

    joined = {(request.trace_id, request.parent_span_id) for request in decoded.at_gateway}
    alone = len(load.traceparents - joined)
    if alone:
        found.append(
            f"{alone} of {len(load.traceparents)} requests did not join their caller's trace"
        )
    untiled = sum(not request.tiled for request in decoded.requests)
    if untiled:
        found.append(f"the stages of {counted(untiled, 'request')} do not add up to the whole")
    for kind, ends in _ENDS.items():
        others = sum(
            not request.stages or request.stages[-1].name.partition("_to_")[2] not in ends
            for request in decoded.requests
            if request.kind is kind
        )
        if others:
            found.append(f"{counted(others, 'request')} did not end with {' or '.join(ends)}")
    if decoded.orphans:
        found.append(f"no request for {counted(len(decoded.orphans), 'stage')}")
    return found


def _of_traces(load: Summary, found_traces: Sequence[Trace]) -> list[str]:
    broken = Counter(
        problem for trace in found_traces for problem in broken_links(trace, load.traceparents)
    )
    return [f"in {counted(count, 'trace')} {problem}" for problem, count in broken.items()]


def _of_sums(load: Summary, decoded: Decoded, sums: Sums) -> list[str]:
    found = []
    # The gateway's, and of each call both ends.
    owed = load.completed + 2 * calls_owed(load).total()
    if sums.seen != owed:
        found.append(f"the agent saw {sums.seen} of {owed} requests")
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

# SPDX-License-Identifier: Apache-2.0
"""What became of the injected delays: errors, leaks, owners, and tcpdump's times beside ours."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from delays.experiment import WARM, Told, Trial
from delays.scenarios import Scenario
from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner, ends_of, owner_of


@dataclass(frozen=True)
class Outcome:
    """One request that had a delay.

    Attributes:
        injected_ns: by those who injected it.
        measured_ns: of the stage that has to have it; 0: there is no such stage.
        leak_ns: by how much all else took longer than it usually does without the delay.
        owner: whose the largest part of the request's time is.
        stages_ns: all stages, by name.
        beside_ns: by stamp, ours minus tcpdump's of the packet.
    """

    injected_ns: int
    measured_ns: int
    leak_ns: int
    owner: Owner
    stages_ns: dict[str, int]
    beside_ns: dict[str, int]

    @property
    def error_ns(self) -> int:
        """What was measured minus what was injected."""
        return self.measured_ns - self.injected_ns


@dataclass(frozen=True)
class Finding:
    """All requests of a scenario that had a delay.

    Attributes:
        stage: that has it; empty: none is to.
    """

    scenario: Scenario
    stage: str
    outcomes: tuple[Outcome, ...]

    def is_right(self, outcome: Outcome) -> bool:
        """Is the delay told of the right one; or, where it is nobody's, is it not in the span?"""
        if self.scenario.owner is not None:
            return outcome.owner is self.scenario.owner
        return sum(outcome.stages_ns.values()) < outcome.injected_ns / 2 < outcome.measured_ns

    @property
    def right(self) -> int:
        """How many were."""
        return sum(map(self.is_right, self.outcomes))

    @property
    def wrong(self) -> str:
        """Where those have it that are told elsewhere; empty: there are none."""
        where = Counter(
            f"{max(each.stages_ns, key=each.stages_ns.get)} ({each.owner})"
            for each in self.outcomes
            if not self.is_right(each) or each.measured_ns < each.injected_ns / 2
        )
        return ", ".join(f"{name} x {count}" for name, count in where.most_common())


def find(trial: Trial) -> Finding:
    """Compares what all of them say."""
    usual_ns = round(statistics.median(
        _outside_ns(trial, trial.told[number])
        for number in range(WARM + 1, len(trial.told))
        if not any(trial.delays_ns[number - 1 : number + 1])
    ))  # fmt: skip
    return Finding(
        trial.scenario,
        trial.stage,
        tuple(
            Outcome(
                injected_ns=trial.scenario.injected_ns(trial.taken, number),
                measured_ns=_measured_ns(trial, trial.told[number]),
                leak_ns=_outside_ns(trial, trial.told[number]) - usual_ns,
                owner=_owner(trial.told[number], trial.scenario.kind),
                stages_ns=trial.told[number].stage_ns,
                beside_ns=dict(_beside(trial, number)),
            )
            for number, delay_ns in enumerate(trial.delays_ns)
            if delay_ns
        ),
    )


def _measured_ns(trial: Trial, told: Told) -> int:
    return told.stage_ns.get(trial.stage, 0) if trial.stage else told.acked_ns


def _outside_ns(trial: Trial, told: Told) -> int:
    """All of the request's time but what lies between the two stamps of the delayed stage."""
    stamps = told.stamps_unix_ns()
    first, second = (stamps.get(each, 0) for each in ends_of(trial.stage))
    return told.total_ns - (max(0, second - first) if first and second else 0)


def _owner(told: Told, kind: Kind) -> Owner:
    shares: Counter[Owner] = Counter()
    for name, ns in told.stage_ns.items():
        shares[owner_of(name, kind)] += ns
    return shares.most_common(1)[0][0]


def _beside(trial: Trial, number: int) -> Iterator[tuple[str, int]]:
    """Each stamp that a packet has, and how much later than tcpdump's it is."""
    told, scenario = trial.told[number], trial.scenario
    local, peer = (told.span.attributes[f"network.{end}.port"] for end in ("local", "peer"))
    sizes = scenario.request_bytes, scenario.response_bytes
    in_bytes, out_bytes = sizes if scenario.kind is Kind.SERVER else reversed(sizes)
    inbound, outbound = trial.packets.way(peer, local), trial.packets.way(local, peer)
    stamps = told.stamps_unix_ns()
    in_first, out_first = number * in_bytes, number * out_bytes
    passed = {
        "nic": (inbound, in_first),
        "tc": (inbound, in_first),
        "nic_last": (inbound, in_first + in_bytes - 1),
        "tc_last": (inbound, in_first + in_bytes - 1),
        "tc_out": (outbound, out_first),
        "tc_out_last": (outbound, out_first + out_bytes - 1),
    }
    for stamp, (way, position) in passed.items():
        if stamp in stamps:
            yield stamp, stamps[stamp] - way.passed_unix_ns(position)
    if "acked" in stamps:
        yield "acked", stamps["acked"] - outbound.acknowledged_unix_ns(out_first + out_bytes)

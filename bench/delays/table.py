# SPDX-License-Identifier: Apache-2.0
"""The findings as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from delays.findings import Finding
from delays.scenarios import End, Moment, Scenario
from otelbpf.ledger.request import Kind

_ACK = "otelbpf.tcp.ack.duration_ns"
_STAMPS = ("nic", "tc", "nic_last", "tc_last", "tc_out", "tc_out_last", "acked")
_NAMES = {
    (Kind.SERVER, End.SUBJECT): "server",
    (Kind.SERVER, End.PEER): "client",
    (Kind.CLIENT, End.SUBJECT): "client",
    (Kind.CLIENT, End.PEER): "upstream",
}


def of_delays(findings: Sequence[Finding]) -> str:
    """One line for each scenario; times in µs."""
    return _table(
        ("measured", "what is injected", "stage that must have it", "whose it must be", "right",
         "error p50", "p99", "max", "leak p50", "p99", "tcpdump p50", "max"),
        (_row(each) for each in findings),
    )  # fmt: skip


def _row(finding: Finding) -> tuple[str, ...]:
    scenario, outcomes = finding.scenario, finding.outcomes
    errors = np.array([each.error_ns for each in outcomes])
    leaks = np.array([each.leak_ns for each in outcomes])
    beside = np.abs([ns for each in outcomes for ns in each.beside_ns.values()])
    return (
        scenario.kind,
        scenario.what,
        f"`{finding.stage or _ACK}`",
        scenario.owner.label if scenario.owner else "nobody's: after the request",
        f"{finding.right} of {len(outcomes)}",
        _us(np.median(errors)), _us(np.quantile(abs(errors), 0.99)), _us(abs(errors).max()),
        _us(np.median(leaks)), _us(np.quantile(leaks, 0.99)),
        _us(np.median(beside)), _us(beside.max()),
    )  # fmt: skip


def of_wrong(findings: Sequence[Finding]) -> str:
    """A line for each scenario whose delay was told elsewhere; empty: there is none."""
    return "\n".join(f"- {each.scenario.what}: {each.wrong}" for each in findings if each.wrong)


def of_stamps(findings: Sequence[Finding]) -> str:
    """One line for each stamp that tcpdump has too; times in µs."""
    return _table(
        ("stamp", "packets", "p50", "p99", "max"),
        (_beside(stamp, ours) for stamp in _STAMPS if (ours := _of(stamp, findings)).size),
    )


def _of(stamp: str, findings: Sequence[Finding]) -> np.ndarray:
    return np.array(
        [each.beside_ns[stamp] for finding in findings for each in finding.outcomes
         if stamp in each.beside_ns]
    )  # fmt: skip


def _beside(stamp: str, ours: np.ndarray) -> tuple[str, ...]:
    return (f"`{stamp}`", str(ours.size), _us(np.median(ours)),
            _us(np.quantile(abs(ours), 0.99)), _us(abs(ours).max()))  # fmt: skip


def of_scenarios(scenarios: Iterable[Scenario]) -> str:
    """What the two ends do for each request, and what the injected delay lies between."""
    return _table(
        ("measured", "what is injected", "the measured end", "the other end",
         "the delay lies between"),
        (
            (
                each.kind, each.what, _steps(each.subject), _steps(each.peer),
                f"{_moment(each, each.begins)} and {_moment(each, each.ends)}",
            )
            for each in scenarios
        ),
    )  # fmt: skip


def _steps(steps: Iterable[str]) -> str:
    return ", ".join(step.replace("_", " ") for step in steps)


def _moment(scenario: Scenario, moment: Moment) -> str:
    when = "end" if moment.after else "start"
    step = moment.step.replace("_", " ")
    return f"the {when} of the {_NAMES[scenario.kind, moment.end]}'s `{step}`"


def _us(ns: float) -> str:
    """In µs; what is below ten with its tenths."""
    us = ns / 1000
    return f"{us:.1f}" if abs(us) < 9.95 else f"{us:,.0f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

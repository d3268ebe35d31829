# SPDX-License-Identifier: Apache-2.0
"""The findings as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from delays.findings import Finding

_ACK = "otelbpf.tcp.ack.duration_ns"
_STAMPS = ("nic", "tc", "nic_last", "tc_last", "tc_out", "tc_out_last", "acked")


def of_delays(findings: Sequence[Finding]) -> str:
    """One line for each scenario; times in µs."""
    return _table(
        ("measured", "what is injected", "the stage that has it", "owner", "right",
         "error p50", "p99", "max", "leak p50", "p99", "tcpdump p50", "max"),
        (_row(each) for each in findings),
    )  # fmt: skip


def _row(finding: Finding) -> tuple[str, ...]:
    scenario, outcomes = finding.scenario, finding.outcomes
    errors = np.array([each.error_ns for each in outcomes])
    leaks = np.array([each.leak_ns for each in outcomes])
    beside = np.array([ns for each in outcomes for ns in each.beside_ns.values()])
    return (
        scenario.kind,
        scenario.what,
        f"`{finding.stage or _ACK}`",
        scenario.owner or "none: after the request",
        f"{finding.right} of {len(outcomes)}",
        _us(np.median(errors)), _us(np.quantile(abs(errors), 0.99)), _us(abs(errors).max()),
        _us(np.median(leaks)), _us(np.quantile(leaks, 0.99)),
        _us(np.median(abs(beside))), _us(abs(beside).max()),
    )  # fmt: skip


def of_stamps(findings: Sequence[Finding]) -> str:
    """One line for each stamp that tcpdump has too; times in µs."""
    return _table(
        ("stamp", "how many", "ours - tcpdump's: p50", "p99 of its size", "max of its size"),
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


def _us(ns: float) -> str:
    """In µs; what is below ten with its tenths."""
    us = ns / 1000
    return f"{us:.1f}" if abs(us) < 9.95 else f"{us:,.0f}"


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

# SPDX-License-Identifier: Apache-2.0
"""What `otelbpf check` has found, for people and as JSON."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from otelbpf.host import ulimits

# What these import takes memory, which may be what is missing.
if TYPE_CHECKING:
    from otelbpf.host.rights import Right
    from otelbpf.kernel.hooks import Choice


@dataclass(frozen=True)
class Finding:
    """One thing that otelbpf needs.

    Attributes:
        remedy: what to do where it is not there; empty where it is.
        optional: without it otelbpf runs, but does not do all that it could.
    """

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    optional: bool = False


@dataclass(frozen=True)
class Report:
    """What was found out.

    Attributes:
        keeps: the rights of this process that otelbpf does not give up once it has attached.
    """

    kernel: str
    findings: tuple[Finding, ...]
    choices: tuple[Choice, ...]
    keeps: tuple[Right, ...]

    @property
    def can_run(self) -> bool:
        """Is everything there that otelbpf cannot do without?"""
        return all(finding.ok or finding.optional for finding in self.findings)

    def as_json(self) -> str:
        """One JSON object."""
        return json.dumps(
            {
                "kernel": self.kernel,
                "can_run": self.can_run,
                "findings": [asdict(finding) for finding in self.findings],
                "hooks": [
                    {
                        "name": choice.hook.name,
                        "stamps": list(choice.hook.stamps),
                        "measures": list(choice.hook.measures),
                        "chosen": _describe(choice),
                        "candidates": [
                            {
                                "mechanism": verdict.candidate.mechanism.value,
                                "target": verdict.candidate.target,
                                "available": verdict.available,
                                "reason": verdict.reason,
                            }
                            for verdict in choice.verdicts
                        ],
                    }
                    for choice in self.choices
                ],
                "keeps": [
                    {"capability": right.capability.name, "purpose": right.purpose}
                    for right in self.keeps
                ],
            },
            indent=2,
        )

    def __str__(self) -> str:
        lines = [f"kernel {self.kernel}", ""]
        for finding in self.findings:
            state = "ok     " if finding.ok else "limited" if finding.optional else "MISSING"
            lines.append(f"  {state}  {finding.name}: {finding.detail}")
            if finding.remedy:
                lines.append(f"           -> {finding.remedy}")
        if self.choices:
            lines += ["", f"  {'stamp':<26} {'hook':<38} passed over"]
        for choice in self.choices:
            gives = ", ".join(choice.hook.gives) or f"({choice.hook.name})"
            lines.append(
                f"  {gives:<26} {_describe(choice) or _nothing(choice):<38} " + _passed_over(choice)
            )
        if self.keeps:
            lines += ["", "  once attached it gives up all rights but"]
            lines += [f"  {right.capability.name:<26} {right.purpose}" for right in self.keeps]
        lines += ["", "otelbpf can run here." if self.can_run else "otelbpf cannot run here."]
        return "\n".join(line.rstrip() for line in lines)


def _describe(choice: Choice) -> str | None:
    if choice.chosen is None:
        return None
    return str(choice.chosen)


def _nothing(choice: Choice) -> str:
    if choice.hook.not_everywhere:
        return f"none of its own for {choice.hook.name}"
    return "none: it will be absent"


def _passed_over(choice: Choice) -> str:
    return "; ".join(map(str, choice.passed_over))


def of_limits() -> Report | None:
    """What is said where this process's limits are too low to look at anything else; else None."""
    found = tuple(
        Finding(limit.name, False, error.what, error.remedy) for limit, error in ulimits.too_low()
    )
    return Report(os.uname().release, found, (), ()) if found else None

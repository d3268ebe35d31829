# SPDX-License-Identifier: Apache-2.0
"""The tables of docs/kernels.md, made of what `otelbpf check --json` says on each kernel."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from otelbpf.kernel.hooks import FORCEABLE, HOOKS

PAGE = Path(__file__).resolve().parents[2] / "docs/kernels.md"
BEGIN = "<!-- What tests/vm/kernel-table wrote begins here. -->\n"
END = "<!-- It ends here. -->\n"

_PLURAL = {"fentry": "fentry", "tracepoint": "tracepoints", "kprobe": "kprobes"}
_NOT_EVERYWHERE = {hook.name for hook in HOOKS if hook.not_everywhere}
_CAN_BE_FORCED = {hook.name for hook in HOOKS if hook.can_be_forced}


def column(report: str) -> tuple[str, list[str], list[str]]:
    """One kernel's part of the page.

    Args:
        report: the output of `otelbpf check --json`.
    Returns:
        the kernel's name, and its cells of both tables.
    """
    said = json.loads(report)
    hooks = said["hooks"]
    return (
        _name(said["kernel"], hooks),
        [_chosen(h) for h in hooks],
        [_without(hooks, mechanism) for mechanism in FORCEABLE],
    )


def render(columns: list[tuple[str, list[str], list[str]]]) -> str:
    """Both tables, in Markdown."""
    names = [name for name, _, _ in columns]
    hooks = [
        f"{', '.join(map(_code, hook.gives))} ({hook.purpose})" if hook.gives else hook.purpose
        for hook in HOOKS
    ]
    forced = [f"`--hooks {mechanism}`" for mechanism in FORCEABLE]
    return "\n".join(
        [
            *_table(["what (when)", *names], hooks, [chosen for _, chosen, _ in columns]),
            "",
            *_table(["", *names], forced, [without for _, _, without in columns]),
            "",
        ]
    )


def parse(page: str) -> dict[str, tuple[list[str], list[str]]]:
    """By kernel, the cells of both tables, as the page has them."""
    written = page.partition(BEGIN)[2].partition(END)[0]
    first, second = (_columns(table) for table in written.strip().split("\n\n"))
    return {name: (cells, second[name]) for name, cells in first.items()}


def _columns(table: str) -> dict[str, list[str]]:
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()
    )
    return {name: [row[at] for row in rows] for at, name in enumerate(header) if at}


def _table(header: list[str], rows: list[str], columns: list[list[str]]) -> list[str]:
    lines = [header, ["---"] * len(header), *zip(rows, *columns, strict=True)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _name(release: str, hooks: list[dict[str, Any]]) -> str:
    """The series of a release, and what it cannot do at all."""
    series = re.match(r"\d+\.\d+", release)[0]
    available = {c["mechanism"] for hook in hooks for c in hook["candidates"] if c["available"]}
    missing = [_PLURAL[mechanism] for mechanism in FORCEABLE if mechanism not in available]
    return " without ".join([series, *([" and ".join(missing)] if missing else [])])


def _chosen(hook: dict[str, Any]) -> str:
    if hook["chosen"] is None:
        return "not needed" if hook["name"] in _NOT_EVERYWHERE else "absent"
    mechanism, target = hook["chosen"].split(" ")
    return f"{mechanism} {_code(target)}"


def _without(hooks: list[dict[str, Any]], mechanism: str) -> str:
    """The stamps that are absent if one mechanism alone is used, and why."""
    absent: dict[str, list[str]] = {}
    for hook in hooks:
        if hook["name"] not in _CAN_BE_FORCED - _NOT_EVERYWHERE:
            continue
        left = [c for c in hook["candidates"] if c["mechanism"] == mechanism]
        if not any(candidate["available"] for candidate in left):
            reason = "; ".join(c["reason"] for c in left) or f"there is no {mechanism} for it"
            stamps = absent.setdefault(reason, [])
            stamps += hook["stamps"] + hook["measures"]
            # A wake-up is stamped where it is known for which bytes it was: at their queueing.
            stamps += ["woken", "running"] if "queued" in hook["stamps"] else []
    return (
        "; ".join(
            f"{', '.join(map(_code, stamps))} absent: {reason}" for reason, stamps in absent.items()
        )
        or "every stamp"
    )


def _code(text: str) -> str:
    return f"`{text}`"

# SPDX-License-Identifier: Apache-2.0
"""The dashboard as Grafana would read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import Kind, stage_name
from otelbpf.ledger.stamps import Owner, owner_of
from otelbpf.metrics.stage_places import OTHER_STAGES

PATH = Path(__file__).resolve().parents[2] / "collector/grafana/otelbpf.json"
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


@dataclass(frozen=True)
class Query:
    """One expression of a panel."""

    panel: str
    ref: str
    expression: str

    def __str__(self) -> str:
        return f"{self.panel} {self.ref}"

    def with_values(self, values: Mapping[str, str]) -> str:
        """The expression with values for its variables, as Grafana puts them in.

        Raises:
            KeyError: a variable has none.
        """
        return _VARIABLE.sub(lambda match: values[match[1] or match[2]], self.expression)


def load() -> dict[str, Any]:
    """The whole file."""
    made: dict[str, Any] = json.loads(PATH.read_text())
    return made


def queries() -> Iterator[Query]:
    """The expressions of all panels."""
    for panel in load()["panels"]:
        for target in panel.get("targets", []):
            yield Query(panel["title"], target["refId"], target["expr"])


def owned_by(owner: Owner, kind: Kind) -> str:
    """A regular expression, as Prometheus anchors it, for the stages that are an owner's."""
    firsts: dict[tuple[str, ...], list[str]] = {}
    # What was cut short has ended: there is no stage after that.
    begins = [stamp for stamp in Stamp if stamp < Stamp.ENDED]
    for second in (*begins, Stamp.ENDED):
        after = [
            first for first in begins
            if first is not second and owner_of(stage_name(first, second), kind) is owner
        ]  # fmt: skip
        if after:
            is_all = {*after, second} >= set(begins)
            names = (".+",) if is_all else tuple(stamp.name.lower() for stamp in after)
            firsts.setdefault(names, []).append(second.name.lower())
    alternatives = [f"{_any_of(first)}_to_{_any_of(second)}" for first, second in firsts.items()]
    # Of stages for which there was no place left nobody knows.
    return "|".join(alternatives + [OTHER_STAGES] * (owner is Owner.UNKNOWN))


def _any_of(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"({'|'.join(names)})"

# SPDX-License-Identifier: Apache-2.0
"""The dashboard as Grafana would read it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

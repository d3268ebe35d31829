# SPDX-License-Identifier: Apache-2.0
"""Which requests are told of nobody: those of routes that nobody wants to hear of."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from otelbpf.ledger.request import line_of
from otelbpf.policy.routes import Routes

# Request lines whose answer is remembered.
_KNOWN_MOST = 65_536


class Ignored:
    """Finds them by their paths.

    Args:
        templates: as in otelbpf.policy.routes.
    """

    def __init__(self, templates: Iterable[str]) -> None:
        self._templates = tuple(templates)
        self._routes = Routes(self._templates, 0)
        self._known: dict[tuple[bytes, int], bool] = {}

    def of(self, records: np.ndarray) -> np.ndarray:
        """(n,) bool: are they?

        Of a path that is cut nobody knows the rest: its request is told.
        """
        if not self._templates:
            return np.zeros(len(records), bool)
        http1 = records["http1"]
        lines = zip(
            http1["request_line"].tolist(), http1["request_line_length"].tolist(), strict=True
        )
        return np.fromiter((self._is_one(*line) for line in lines), bool, len(records))

    def _is_one(self, line: bytes, length: int) -> bool:
        known = self._known.get((line, length))
        if known is None:
            if len(self._known) >= _KNOWN_MOST:
                self._known.clear()
            of = line_of(line, length)
            known = not of.path_cut and bool(self._routes.template(of.path))
            self._known[line, length] = known
        return known

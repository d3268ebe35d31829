# SPDX-License-Identifier: Apache-2.0
"""The route that a path is of: a template that was given, else the path with its ids folded.

A route that is found is a guess by the path's looks; nobody has told it. The kernel folds by the
same rule (bpf/ledger/route.h), so that all paths of one route, as far as this rule can tell, come
under one key there.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable

from otelbpf.errors import UsageError

_log = logging.getLogger(__name__)

#: What stands in a found route for a segment that is an id.
ID = "{id}"
#: How many found routes spans tell apart where nothing else is said.
FOUND_MOST = 256
# A whole segment that starts with a digit, or has two; but for a version of eight characters at
# most.
_ID = re.compile(
    r"(?<![^/])(?!v[0-9][^/]{0,6}(?:/|\Z))(?:[0-9][^/]*|[^/0-9]+[0-9][^/0-9]*[0-9][^/]*)"
)
_PLACEHOLDER = re.compile(r"\{[^{}/]+\}")
_REST = "/*"
_PLAIN = re.compile(r"[\w.-]{1,60}", re.ASCII)


def is_id(segment: str) -> bool:
    """Is this part of a path an id? It is if it starts with a digit, or has two of them.

    Not so a version: a `v`, then a digit, and eight characters at most, as in `v1beta1`.
    """
    return _ID.fullmatch(segment) is not None


def fold(path: str) -> str:
    """The path with `{id}` for each segment that is one."""
    return _ID.sub(ID, path)


class Routes:
    """Names routes.

    Args:
        templates: as in `/users/{name}/files`, where `{…}` stands for one segment and a `/*` at
            the end for all the rest; the first that fits is taken.
        found_most: how many routes that were found are names of spans; 0: only those that were
            given are routes at all.
    Raises:
        UsageError: one is no path, or has braces that enclose nothing.
    """

    def __init__(self, templates: Iterable[str] = (), found_most: int = FOUND_MOST) -> None:
        self._templates = tuple((template, _expression(template)) for template in templates)
        self._found_most = found_most
        self._found: set[str] = set()
        self._is_full_told = False

    def template(self, path: str) -> str:
        """The route of a path, which is without its query; empty: it has none."""
        return self._given(path) or self._find(path)

    def name(self, path: str) -> str:
        """The same for the names of spans, which must not be without number: of the routes that
        were found only the first ones. Says so, once, when there is one too many."""
        route = self._given(path)
        if route:
            return route
        route = self._find(path)
        if route not in self._found:
            if not route:
                return ""
            if len(self._found) >= self._found_most:
                self._tell_full()
                return ""
            self._found.add(route)
        return route

    def _tell_full(self) -> None:
        if self._is_full_told:
            return
        self._is_full_told = True
        _log.warning(
            "%d found routes are names of spans, and there is room for no more: spans of others "
            "have no route, and the method alone for a name; %s, `--routes given` finds none, "
            "`--series` makes more room", len(self._found), self._way_to_fewer(),
        )  # fmt: skip

    def _way_to_fewer(self) -> str:
        """A template for most of what was found, if there is one."""
        below = Counter(route.split("/")[1] for route in self._found if route.count("/") > 1)
        # Clients chose it.
        plain = [(stem, count) for stem, count in below.items() if _PLAIN.fullmatch(stem)]
        stem, count = max(plain, key=lambda each: each[1], default=("", 0))
        if count * 2 < len(self._found):
            return "`--route` makes many of them one"
        return f"`--route '/{stem}/*'` makes {count} of them one"

    def _given(self, path: str) -> str:
        for template, expression in self._templates:
            if expression.fullmatch(path):
                return template
        return ""

    def _find(self, path: str) -> str:
        # `*`, or the host that CONNECT asks for, is no path.
        return fold(path) if self._found_most and path.startswith("/") else ""


def _expression(template: str) -> re.Pattern[str]:
    fixed = _PLACEHOLDER.sub("", template)
    if not template.startswith("/") or "{" in fixed or "}" in fixed:
        raise UsageError(
            f"{template!r} is no route: it begins with a slash, and {{name}} stands for a segment "
            "or a part of one, as in /users/{name}"
        )
    stem = template.removesuffix(_REST)
    parts = _PLACEHOLDER.split(stem)
    return re.compile("[^/]+".join(map(re.escape, parts)) + ("(/.*)?" if stem != template else ""))

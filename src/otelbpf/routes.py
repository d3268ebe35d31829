# SPDX-License-Identifier: Apache-2.0
"""The route that a path is of: a template that was given, else the path with its ids folded.

The kernel folds by the same rule (bpf/route.h), so that all paths of one route, as far as this
rule can tell, come under one key there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from otelbpf.errors import UsageError

#: What stands in a found route for a segment that is an id.
ID = "{id}"
_VERSION_LONGEST = 8
_PLACEHOLDER = re.compile(r"\{[^{}/]+\}")
_REST = "/*"


def is_id(segment: str) -> bool:
    """Is this part of a path an id? It is if it starts with a digit, or has two of them.

    Not so a version: a `v`, then a digit, and eight characters at most, as in `v1beta1`.
    """
    if len(segment) <= _VERSION_LONGEST and segment[:1] == "v" and _is_digit(segment[1:2]):
        return False
    return _is_digit(segment[:1]) or sum(map(_is_digit, segment)) >= 2


def _is_digit(character: str) -> bool:
    return "0" <= character <= "9"


def fold(path: str) -> str:
    """The path with `{id}` for each segment that is one."""
    return "/".join(ID if is_id(segment) else segment for segment in path.split("/"))


class Routes:
    """Names routes.

    Args:
        templates: as in `/users/{name}/files`, where `{…}` stands for one segment and a `/*` at
            the end for all the rest; the first that fits is taken.
    Raises:
        UsageError: one is no path, or has braces that enclose nothing.
    """

    def __init__(self, templates: Iterable[str] = ()) -> None:
        self._templates = tuple((template, _expression(template)) for template in templates)

    def template(self, path: str) -> str:
        """The route of a path; the path without its query."""
        return self.given(path) or fold(path)

    def given(self, path: str) -> str:
        """The template that was given for it; empty: none was."""
        for template, expression in self._templates:
            if expression.fullmatch(path):
                return template
        return ""


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

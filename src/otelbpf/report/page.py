# SPDX-License-Identifier: Apache-2.0
"""content -> page: one HTML file that needs nothing else, and may load nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from otelbpf.report.content import content
from otelbpf.report.recording import read
from otelbpf.report.sums import read_sums

_STYLES = ("page.css", "charts.css")
_SCRIPTS = ("base.js", "charts.js", "routes.js", "request.js", "page.js")
#: What would end the script element that holds the data, or begin a comment in it; and two line
#: ends of JavaScript's that are none of JSON's. As escapes they mean the same to JSON.
_ESCAPES = {ord(each): f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"}


def make(spans: list[Path], sums: Path | None) -> str:
    """The page for these files of spans, and the agent's sums where they are given.

    Raises:
        UsageError: a file cannot be read, or is something else.
    """
    told = None if sums is None else read_sums(sums)
    return html(content(read(spans), told))


def html(data: Mapping[str, Any]) -> str:
    """The page that shows `data`: only ASCII, so that it is the same in any encoding."""
    style, script = _joined(_STYLES), _joined(_SCRIPTS)
    # Nothing may be fetched, and of scripts and styles only these two are run.
    policy = (
        f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "style": style, "script": script, "data": as_json_element(data)}
    page = _asset("page.html")
    # Each part goes in last to first, so that no part's own text is taken for a place of another.
    places = sorted(((page.index(f"{{{{{name}}}}}"), name) for name in parts), reverse=True)
    for at, name in places:
        page = page[:at] + parts[name] + page[at + len(name) + 4 :]
    return page


def as_json_element(data: Mapping[str, Any]) -> str:
    """JSON that may stand in a script element, whatever clients wrote into it."""
    return json.dumps(data, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def _joined(names: tuple[str, ...]) -> str:
    return "\n" + "".join(map(_asset, names))


def _asset(name: str) -> str:
    return (files(__package__) / "assets" / name).read_text(encoding="ascii")


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

# SPDX-License-Identifier: Apache-2.0
"""What PromQL expressions ask for, and what there is to be asked for."""

from __future__ import annotations

import re

from scraped import families
from snapshots import key, series, snapshot

from otelbpf.ledger.request import Kind
from otelbpf.metrics.instruments import metrics_of
from otelbpf.metrics.snapshot import SeriesKey

_STRING = re.compile(r'"[^"]*"')
_MATCHERS = re.compile(r"\{([^{}]*)\}")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")
_GROUPING = re.compile(r"\b(?:by|on|ignoring|group_left)\s*\(([^()]*)\)")
_METRIC = re.compile(r"(?<![\w:])((?:http|otelbpf)_\w+|target_info)(?![\w:])")


def metrics_in(expression: str) -> set[str]:
    """The names of the metrics; not of what rules record."""
    bare = _STRING.sub("", expression)
    return set(_METRIC.findall(_MATCHERS.sub("", _GROUPING.sub("", bare))))


def matched_in(expression: str) -> set[str]:
    """The names of labels that are compared with something."""
    inside = _MATCHERS.findall(_STRING.sub("", expression))
    return {label for each in inside for label in _MATCHER.findall(each)}


def labels_in(expression: str) -> set[str]:
    """The names of all labels."""
    inside = _GROUPING.findall(_STRING.sub("", expression))
    grouped = {label.strip() for each in inside for label in each.split(",")}
    return matched_in(expression) | (grouped - {""})


def everything() -> tuple[set[str], set[str]]:
    """The names of all samples that an agent has, and of all their labels."""
    made = metrics_of(
        snapshot(
            series(),
            series(key(status=500)),
            series(key(Kind.CLIENT)),
            series(SeriesKey(Kind.SERVER, key().resource, overflow=True)),
        )
    )
    samples = [sample for family in families(made) for sample in family.samples]
    return {s.name for s in samples}, {label for s in samples for label in s.labels}

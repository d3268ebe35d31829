# SPDX-License-Identifier: Apache-2.0
"""recording -> what the page holds, as JSON: all its numbers are made here, none in the browser."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import (
    Owner,
    ends_of,
    meaning_of,
    owner_of,
    place_of_stage,
    place_of_stamp,
    shade_of,
)
from otelbpf.ledger.tally import not_joined
from otelbpf.report.distributions import BINS_PER_DECADE, Distribution, distribution
from otelbpf.report.otlp_json import Span, Value
from otelbpf.report.recording import Recording, Route, path_of, text_of
from otelbpf.report.selection import BELOW, FAILED, SLOWEST, Below, Selection, select
from otelbpf.report.sums import REASONS, RecordedSums
from otelbpf.version import __version__

#: Routes with a place of their own, those with the most requests; the others share one.
MOST_ROUTES = 100
_ABSENT = "otelbpf.ledger.absent"
_STAGE_ATTRIBUTE = "otelbpf.stage."
#: The stamp that comes after a request's end.
_ACKED = Stamp.ACKED.name.lower()

Json = dict[str, Any]


def content(recording: Recording, sums: RecordedSums | None) -> Json:
    """Everything that the page shows.

    Times are ns: of a request since the recording's first stamp, of a stage or a stamp since its
    request's first. Their absolute values are text, because a browser's numbers end at 2^53.
    """
    routes, route, merged = _bounded(recording)
    selection = select(recording, route, len(routes))
    first_unix_ns = int(recording.requests.start_unix_ns.min())
    last_unix_ns = int((recording.requests.start_unix_ns + recording.requests.total_ns).max())
    shown = _Shown(recording, selection, route, first_unix_ns)
    seconds = (last_unix_ns - first_unix_ns) / 1e9
    return {
        "version": __version__,
        "files": [str(path) for path in recording.paths],
        "first": _utc(first_unix_ns),
        "last": _utc(last_unix_ns),
        "seconds": seconds,
        "requests_read": len(recording.requests),
        "spans_read": recording.spans,
        "untiled": recording.untiled,
        "orphans": recording.orphans,
        "torn_lines": recording.torn_lines,
        "routes_merged": merged,
        "below_left_out": selection.below_left_out,
        "most": {"slowest": SLOWEST, "failed": FAILED, "routes": MOST_ROUTES, "below": BELOW},
        "failed_read": int(np.count_nonzero(recording.requests.failed)),
        "failed_shown": sum(map(len, selection.failed)),
        "bins_per_decade": BINS_PER_DECADE,
        "owners": [
            {"name": owner, "label": owner.label, "about": owner.about} for owner in Owner
        ],
        "stages": [
            {
                "name": name,
                "owner": {kind: owner_of(name, kind) for kind in Kind},
                "shade": shade_of(name),
            }
            for name in recording.stage_names
        ],
        "meanings": {
            stamp: meaning_of(stamp) for stamp in shown.stamps() if meaning_of(stamp)
        },
        "kinds": _kinds(recording, routes, route),
        "routes": _routes(recording, routes, route, shown, seconds),
        "requests": shown.requests(),
        "resources": shown.resources,
        "reasons": REASONS,
        "unjoined": [] if sums is None else not_joined(sums.joins),
        "sums": None if sums is None else asdict(sums),
    }  # fmt: skip


def _bounded(recording: Recording) -> tuple[list[Route], np.ndarray, int]:
    """(routes to show, the number among them of each request's, how many share one)."""
    counts = np.bincount(recording.requests.route, minlength=len(recording.routes))
    if len(counts) <= MOST_ROUTES:
        return list(recording.routes), recording.requests.route, 0
    most = np.argsort(-counts, kind="stable")
    kept, shared = most[:MOST_ROUTES].tolist(), most[MOST_ROUTES:].tolist()
    routes = [recording.routes[number] for number in kept]
    new = np.zeros(len(counts), np.int64)
    new[kept] = np.arange(len(kept))
    for kind in Kind:
        of_kind = [number for number in shared if recording.routes[number].kind is kind]
        if of_kind:
            new[of_kind] = len(routes)
            routes.append(Route("", kind, "", 0, "", f"{len(of_kind):,} more routes"))
    return routes, new[recording.requests.route], len(shared)


def _kinds(recording: Recording, routes: list[Route], route: np.ndarray) -> Json:
    """All requests of each kind together."""
    is_client = np.array([each.kind is Kind.CLIENT for each in routes])[route]
    kinds: Json = {}
    for kind, chosen in ((Kind.SERVER, ~is_client), (Kind.CLIENT, is_client)):
        if chosen.any():
            kinds[kind] = {
                "failed": int(np.count_nonzero(recording.requests.failed[chosen])),
                "total": _json(distribution(recording.requests.total_ns[chosen])),
            }
    return kinds


def _routes(
    recording: Recording, routes: list[Route], route: np.ndarray, shown: _Shown, seconds: float
) -> list[Json]:
    """Every route with its distributions, by p99, the slowest first."""
    requests, stages = recording.requests, recording.stages
    by_route = np.argsort(route, kind="stable")
    bounds = np.searchsorted(route[by_route], np.arange(len(routes) + 1))
    stage_route = route[stages.request]
    groups = np.lexsort((stages.name, stage_route))
    keys = stage_route[groups] * max(1, len(recording.stage_names)) + stages.name[groups]
    edges = np.flatnonzero(np.diff(keys)) + 1
    of_route: dict[int, dict[int, Distribution]] = {}
    for group in np.split(groups, edges) if len(groups) else ():
        number, name = int(stage_route[group[0]]), int(stages.name[group[0]])
        of_route.setdefault(number, {})[name] = distribution(stages.duration_ns[group])

    told = []
    for number, each in enumerate(routes):
        members = by_route[bounds[number] : bounds[number + 1]]
        acked = requests.acked_ns[members]
        acked = acked[acked > 0]
        told.append({
            "number": number,
            **each._asdict(),
            "rate": len(members) / seconds if seconds else None,
            "failed": int(np.count_nonzero(requests.failed[members])),
            "total": _json(distribution(requests.total_ns[members])),
            "acked": _json(distribution(acked)) if len(acked) else None,
            "stages": [
                {"stage": name, **_json(found)}
                for name, found in sorted(
                    of_route.get(number, {}).items(),
                    key=lambda item: place_of_stage(recording.stage_names[item[0]], each.kind),
                )
            ],
            **shown.of_route(number),
        })  # fmt: skip
    return sorted(told, key=lambda one: (-one["total"]["p99_ns"], one["number"]))


class _Shown:
    """The requests that are shown one by one, with numbers of their own."""

    def __init__(
        self, recording: Recording, selection: Selection, route: np.ndarray, first_unix_ns: int
    ) -> None:
        self._recording = recording
        self._selection = selection
        self._route = route
        self._first_unix_ns = first_unix_ns
        self._numbers = {row: number for number, row in enumerate(sorted(selection.spans))}
        self.resources: list[list[tuple[str, str]]] = []
        self._resources: dict[str, int] = {}

    def of_route(self, number: int) -> Json:
        """A route's own."""
        return {
            "slowest": [self._numbers[row] for row in self._selection.slowest[number]],
            "failures": [self._numbers[row] for row in self._selection.failed[number]],
        }

    def stamps(self) -> set[str]:
        """Every stamp that any ledger may name."""
        absent = (each.attributes.get(_ABSENT) for each in self._selection.spans.values())
        named = {_ACKED, *(name for value in absent for name in _names(value))}
        return named | {end for name in self._recording.stage_names for end in ends_of(name)}

    def requests(self) -> list[Json]:
        """All of them."""
        return [self._request(row) for row in self._numbers]

    def _request(self, row: int) -> Json:
        span = self._selection.spans[row]
        stages = self._stages(row, span)
        names = self._recording.stage_names
        status = span.attributes.get("http.response.status_code")
        acked_ns = int(self._recording.requests.acked_ns[row]) or None
        return {
            "trace": span.trace_id,
            "span": span.span_id,
            "parent": span.parent_span_id,
            "route": int(self._route[row]),
            "kind": _kind_of(span),
            "method": text_of(span.attributes.get("http.request.method")) or span.name,
            "path": "".join(path_of(span)),
            "status": status if isinstance(status, int) else None,
            "error": text_of(span.attributes.get("error.type")) or ("error" if span.failed else ""),
            "at": _utc(span.start_unix_ns),
            "since_first_ns": span.start_unix_ns - self._first_unix_ns,
            "total_ns": span.end_unix_ns - span.start_unix_ns,
            "acked_ns": acked_ns,
            "stages": stages,
            "ledger": _ledger(
                [(names[name], at, long) for name, at, long in stages], acked_ns, span
            ),
            "attributes": _texts(span.attributes),
            "resource": self._resource(span),
            "below": [self._below(each, span) for each in self._selection.below[row]],
        }

    def _stages(self, row: int, span: Span) -> list[tuple[int, int, int]]:
        """(name, offset, duration) in order of time; those of no length in that of the way."""
        stages, names = self._recording.stages, self._recording.stage_names
        first, last = np.searchsorted(stages.request, [row, row + 1])
        found = zip(
            stages.name[first:last].tolist(), stages.offset_ns[first:last].tolist(),
            stages.duration_ns[first:last].tolist(), strict=True,
        )  # fmt: skip
        kind = _kind_of(span)

        def when(stage: tuple[int, int, int]) -> tuple[object, ...]:
            return stage[1], *(place_of_stamp(end, kind) for end in ends_of(names[stage[0]]))

        return sorted(found, key=when)

    def _below(self, each: Below, top: Span) -> Json:
        span = each.span
        told: Json = {"depth": each.depth, "offset_ns": span.start_unix_ns - top.start_unix_ns}
        if each.request is not None:
            return {**told, "request": self._numbers[each.request]}
        return {
            **told,
            "name": span.name,
            "scope": span.scope,
            "service": text_of(span.resource.get("service.name")),
            "total_ns": span.end_unix_ns - span.start_unix_ns,
        }

    def _resource(self, span: Span) -> int:
        texts = _texts(span.resource)
        number = self._resources.setdefault(json.dumps(texts), len(self.resources))
        if number == len(self.resources):
            self.resources.append(texts)
        return number


def _ledger(
    stages: list[tuple[str, int, int]], acked_ns: int | None, span: Span
) -> list[tuple[str, int | None]]:
    """(stamp, ns since the first; None: absent), absent ones where they would have been."""
    kind = _kind_of(span)
    made: dict[str, int] = {}
    for name, offset_ns, duration_ns in stages:
        first, second = ends_of(name)
        made.setdefault(first, offset_ns)
        made.setdefault(second, offset_ns + duration_ns)
    if acked_ns is not None:
        made[_ACKED] = span.end_unix_ns - span.start_unix_ns + acked_ns
    ledger: list[tuple[str, int | None]] = sorted(
        made.items(), key=lambda item: (item[1], place_of_stamp(item[0], kind))
    )
    absent = [name for name in _names(span.attributes.get(_ABSENT)) if name not in made]
    for name in sorted(absent, key=lambda each: place_of_stamp(each, kind)):
        place = place_of_stamp(name, kind)
        before = (i for i, (stamp, _) in enumerate(ledger) if place_of_stamp(stamp, kind) > place)
        ledger.insert(next(before, len(ledger)), (name, None))
    return ledger


def _kind_of(span: Span) -> Kind:
    return Kind.CLIENT if span.kind == 3 else Kind.SERVER


def _names(value: Value) -> list[str]:
    return [text_of(each) for each in value] if isinstance(value, list) else []


def _texts(attributes: dict[str, Value]) -> list[tuple[str, str]]:
    """Attributes in words, without the stages that the ledger shows."""
    return [
        (key, text_of(value))
        for key, value in sorted(attributes.items())
        if not key.startswith(_STAGE_ATTRIBUTE)
    ]


def _json(found: Distribution) -> Json:
    return asdict(found)


def _utc(unix_ns: int) -> str:
    seconds, ns = divmod(unix_ns, 1_000_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{ns:09}Z"

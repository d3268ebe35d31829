# SPDX-License-Identifier: Apache-2.0
"""spans -> recording: every request and every stage, as columns of numbers.

A million spans are some ten megabytes of them. What else a span says is read again, for those few
that the page shows (selection.py).
"""

from __future__ import annotations

import logging
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from otelbpf.errors import UsageError
from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import ends_of
from otelbpf.policy.routes import fold
from otelbpf.report.otlp_json import Span, Value, lines
from otelbpf.traces.description import SCOPE

_log = logging.getLogger(__name__)

_KINDS = {2: Kind.SERVER, 3: Kind.CLIENT}
_STAGE_ATTRIBUTE = "otelbpf.stage."
_ACKED = "otelbpf.tcp.ack.duration_ns"
# That a time and a duration together fit into 64 bits.
_NS_MOST = 1 << 62


class Route(NamedTuple):
    """What is the same of all requests that are looked at together.

    Attributes:
        service: whose requests they are: service.name.
        port: that was asked, of a server's requests; else 0.
        host: that was asked, with its port, of a client's requests; else empty.
        template: the path, with `{id}` for what differs.
    """

    service: str
    kind: Kind
    method: str
    port: int
    host: str
    template: str


class Place(NamedTuple):
    """Where a line begins."""

    file: int
    offset: int


@dataclass(frozen=True, eq=False)
class Requests:
    """n requests by span id, each once, however often it was written.

    Attributes:
        trace, span, parent: (n,) uint64: a trace id's last 64 bits, span ids; no parent: 0.
        start_unix_ns, total_ns: (n,) int64.
        acked_ns: (n,) int64, from its end until the client's TCP acknowledged the whole response;
            0: that was not seen.
        route, line: (n,) int64, numbers in the recording's lists.
        failed: (n,) bool.
    """

    trace: np.ndarray
    span: np.ndarray
    parent: np.ndarray
    start_unix_ns: np.ndarray
    total_ns: np.ndarray
    acked_ns: np.ndarray
    route: np.ndarray
    line: np.ndarray
    failed: np.ndarray

    def __len__(self) -> int:
        return len(self.span)


@dataclass(frozen=True, eq=False)
class Stages:
    """m stages by request.

    Attributes:
        request, name: (m,) int64, numbers of requests and in the recording's names.
        offset_ns: (m,) int64, from the request's first stamp.
        duration_ns: (m,) int64.
    """

    request: np.ndarray
    name: np.ndarray
    offset_ns: np.ndarray
    duration_ns: np.ndarray


@dataclass(frozen=True, eq=False)
class Others:
    """k spans that are not otelbpf's; columns as those of the requests."""

    trace: np.ndarray
    span: np.ndarray
    parent: np.ndarray
    line: np.ndarray


@dataclass(frozen=True, eq=False)
class Recording:
    """What was read.

    Attributes:
        stage_names: of all stages.
        places: where the lines begin that have requests or others' spans.
        spans: how many were read, of whomever.
        untiled: requests whose stages do not add up to their span: some were not written here.
        orphans: stages whose request was not written here.
        torn_lines: that are not whole, and were left out.
    """

    paths: tuple[Path, ...]
    routes: tuple[Route, ...]
    stage_names: tuple[str, ...]
    places: tuple[Place, ...]
    requests: Requests
    stages: Stages
    others: Others
    spans: int
    untiled: int
    orphans: int
    torn_lines: int


def read(paths: Sequence[Path]) -> Recording:
    """Reads files of spans.

    Raises:
        UsageError: one cannot be read, or is no OTLP JSON, or none has a request of otelbpf's.
    """
    columns = _Columns()
    places: list[Place] = []
    for file, path in enumerate(paths):
        torn_before = columns.torn_lines
        for line in lines(path):
            if line.spans is None:
                columns.torn_lines += 1
                continue
            shown = [each for each in line.spans if columns.add(each, len(places), path)]
            if shown:
                places.append(Place(file, line.offset))
        if torn := columns.torn_lines - torn_before:
            _log.warning(
                "%d %s of %s %s not whole, as a writer leaves that is killed or has no room: left "
                "out", torn, *(("line", path, "is") if torn == 1 else ("lines", path, "are")),
            )  # fmt: skip
    if not columns.span:
        names = " and ".join(map(str, paths))
        raise UsageError(
            f"no requests in {names}: none of {columns.spans} spans there is otelbpf's of a "
            "request; were there any while it ran?"
        )
    return columns.recording(tuple(paths), tuple(places))


class _Columns:
    """Grows by one span at a time."""

    def __init__(self) -> None:
        self.spans = self.torn_lines = 0
        self.routes: dict[Route, int] = {}
        self.names: dict[str, int] = {}
        # Requests, then stages (by the span id of their request), then others.
        self.trace, self.span, self.parent = array("Q"), array("Q"), array("Q")
        self.start, self.total, self.acked = array("q"), array("q"), array("q")
        self.route, self.line, self.failed = array("q"), array("q"), array("b")
        self.of, self.name = array("Q"), array("q")
        self.stage_start, self.duration = array("q"), array("q")
        self.other_trace, self.other_span = array("Q"), array("Q")
        self.other_parent, self.other_line = array("Q"), array("q")

    def add(self, span: Span, line: int, path: Path) -> bool:
        """Adds a span; whether its line may have to be read again."""
        self.spans += 1
        parent = int(span.parent_span_id or "0", 16)
        if span.scope != SCOPE.name:
            self.other_trace.append(int(span.trace_id[16:], 16))
            self.other_span.append(int(span.span_id, 16))
            self.other_parent.append(parent)
            self.other_line.append(line)
            return True
        duration_ns = span.end_unix_ns - span.start_unix_ns
        if duration_ns < 0:
            raise UsageError(
                f"span {span.span_id} in {path} ends before it begins, which otelbpf's spans never "
                "do: the file was changed, or is not its"
            )
        kind = _KINDS.get(span.kind)
        if kind is None:
            self._add_stage(parent, span.name, span.start_unix_ns, duration_ns)
            return False
        self.trace.append(int(span.trace_id[16:], 16))
        self.span.append(own := int(span.span_id, 16))
        self.parent.append(parent)
        self.start.append(span.start_unix_ns)
        self.total.append(duration_ns)
        self.acked.append(_ns(span.attributes.get(_ACKED, 0), _ACKED, span, path))
        self.route.append(self.routes.setdefault(route_of(span, kind), len(self.routes)))
        self.line.append(line)
        self.failed.append(span.failed)
        at = span.start_unix_ns
        for name, stage_ns in _stage_attributes(span, path):
            self._add_stage(own, name, at, stage_ns)
            at += stage_ns
        return True

    def _add_stage(self, of: int, name: str, start_unix_ns: int, duration_ns: int) -> None:
        self.of.append(of)
        self.name.append(self.names.setdefault(name, len(self.names)))
        self.stage_start.append(start_unix_ns)
        self.duration.append(duration_ns)

    def recording(self, paths: tuple[Path, ...], places: tuple[Place, ...]) -> Recording:
        """Joins stages to their requests; what was written twice (a retry) counts once."""
        spans, first = np.unique(np.asarray(self.span), return_index=True)
        requests = Requests(
            np.asarray(self.trace)[first], spans, np.asarray(self.parent)[first],
            np.asarray(self.start)[first], np.asarray(self.total)[first],
            np.asarray(self.acked)[first], np.asarray(self.route)[first],
            np.asarray(self.line)[first], np.asarray(self.failed)[first].astype(bool),
        )  # fmt: skip
        of = np.asarray(self.of, np.uint64)
        row = np.minimum(np.searchsorted(spans, of), len(spans) - 1)
        known = spans[row] == of
        row, name = row[known], np.asarray(self.name, np.int64)[known]
        # A ledger has each stamp once, and so has each request each stage.
        _, once = np.unique(row * max(1, len(self.names)) + name, return_index=True)
        row, name = row[once], name[once]
        offset = np.asarray(self.stage_start, np.int64)[known][once] - requests.start_unix_ns[row]
        duration = np.asarray(self.duration, np.int64)[known][once]
        stages = Stages(row, name, offset, duration)
        covered = np.zeros(len(spans), np.int64)
        np.add.at(covered, row, duration)
        return Recording(
            paths, tuple(self.routes), tuple(self.names), places, requests, stages,
            Others(np.asarray(self.other_trace, np.uint64), np.asarray(self.other_span, np.uint64),
                   np.asarray(self.other_parent, np.uint64),
                   np.asarray(self.other_line, np.int64)),
            spans=self.spans,
            untiled=int(np.count_nonzero(covered != requests.total_ns)),
            orphans=int(np.count_nonzero(~known)),
            torn_lines=self.torn_lines,
        )  # fmt: skip


def text_of(value: Value) -> str:
    """An attribute's value in words; empty for none."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return ", ".join(map(text_of, value))
    if isinstance(value, dict):
        return ", ".join(f"{name}={text_of(each)}" for name, each in value.items())
    return "" if value is None else str(value)


def path_of(span: Span) -> tuple[str, str]:
    """(host, path) of a request's span; only a client's says the host."""
    full = text_of(span.attributes.get("url.full"))
    if _KINDS.get(span.kind) is not Kind.CLIENT:
        return "", text_of(span.attributes.get("url.path"))
    host, slash, path = full.partition("://")[2].partition("/")
    return host, slash + path.partition("?")[0]


def route_of(span: Span, kind: Kind) -> Route:
    """The route of a request's span: its template where it is told, else its folded path."""
    host, path = path_of(span)
    port = span.attributes.get("network.local.port") if kind is Kind.SERVER else None
    template = span.attributes.get("http.route" if kind is Kind.SERVER else "url.template")
    return Route(
        text_of(span.resource.get("service.name")),
        kind,
        text_of(span.attributes.get("http.request.method")) or span.name,
        port if isinstance(port, int) else 0,
        host,
        text_of(template) or fold(path),
    )


def _ns(value: Value, key: str, span: Span, path: Path) -> int:
    if not isinstance(value, int) or not 0 <= value < _NS_MOST:
        raise UsageError(f"{key} of span {span.span_id} in {path} is no number of ns")
    return value


def _stage_attributes(span: Span, path: Path) -> list[tuple[str, int]]:
    """The stages that are told as attributes (--stages attributes), in order of time.

    Attributes have no order, but each stage begins with the stamp that the one before it ends with.
    """
    told = {}
    for key, value in span.attributes.items():
        if key.startswith(_STAGE_ATTRIBUTE):
            told[key.removeprefix(_STAGE_ATTRIBUTE)] = _ns(value, key, span, path)
    by_first = {ends_of(name)[0]: name for name in told}
    seconds = {ends_of(name)[1] for name in told if "_to_" in name}
    stamp = next((first for first in by_first if first not in seconds), None)
    ordered = []
    while stamp in by_first:
        name = by_first.pop(stamp)
        ordered.append((name, told[name]))
        stamp = ends_of(name)[1]
    return ordered

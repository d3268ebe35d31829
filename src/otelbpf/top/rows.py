# SPDX-License-Identifier: Apache-2.0
"""two snapshots -> the rows of `otelbpf top`: what each route's requests did in between."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import StrEnum

from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner, owner_of, place_of_stage
from otelbpf.ledger.tally import Sums
from otelbpf.metrics.since import since
from otelbpf.metrics.snapshot import Histogram, Series, SeriesKey, Snapshot, no_durations
from otelbpf.protocols.urls import authority_of
from otelbpf.traces.description import LEAST_ERROR


@dataclass(frozen=True)
class RouteKey:
    """What tells one row from another.

    Attributes:
        service: its name.
        upstream: address and port of the one who was asked; empty for a server.
        overflow: of all routes for which there was no series left; its method and route are empty.
    """

    kind: Kind
    service: str
    method: str = ""
    route: str = ""
    upstream: str = ""
    overflow: bool = False


@dataclass(frozen=True, eq=False)
class Stage:
    """One stage of a row's requests.

    Attributes:
        share: of the time of them all, from 0 to 1.
    """

    name: str
    owner: Owner
    durations: Histogram
    share: float


@dataclass(frozen=True, eq=False)
class Row:
    """The requests of a route between two snapshots.

    Attributes:
        seconds: between them.
        errors: how many failed, by the conventions; None: not known, as their status is not.
        durations: from the first stamp to the request's end.
        stages: in the order of the way.
        acked: from the end until the client's TCP acknowledged the response: no part of the above.
        ever: how many requests there were since the agent was started.
    """

    key: RouteKey
    seconds: float
    errors: int | None
    durations: Histogram
    stages: tuple[Stage, ...]
    acked: Histogram
    ever: int

    @property
    def count(self) -> int:
        """How many requests there were."""
        return self.durations.count

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.rate_of(self.durations)

    def rate_of(self, durations: Histogram) -> float:
        """How many requests a second these are of."""
        return durations.count / self.seconds if self.seconds > 0 else 0.0

    @property
    def error_share(self) -> float:
        """From 0 to 1."""
        return (self.errors or 0) / self.count if self.count else 0.0

    @property
    def longest(self) -> Stage | None:
        """The stage that most of the time went to."""
        return max(self.stages, key=lambda stage: stage.share, default=None)

    def shares(self) -> dict[Owner, float]:
        """Whose the time was: shares that add up to 1, in the order of the way; empty: no time."""
        shares: dict[Owner, float] = {}
        for stage in self.stages:
            shares[stage.owner] = shares.get(stage.owner, 0.0) + stage.share
        return shares


class Sort(StrEnum):
    """What rows are sorted by, the most first."""

    RATE = "rate"
    P99 = "p99"
    ERRORS = "errors"
    TIME = "time"

    @property
    def next(self) -> Sort:
        """The one after it, and after the last the first."""
        all_of_them = list(Sort)
        return all_of_them[(all_of_them.index(self) + 1) % len(all_of_them)]


_BY: dict[Sort, Callable[[Row], float]] = {
    Sort.RATE: lambda row: row.count,
    Sort.P99: lambda row: row.durations.quantile_ns(0.99),
    Sort.ERRORS: lambda row: row.errors or 0,
    Sort.TIME: lambda row: row.durations.sum_ns,
}


@dataclass(frozen=True, eq=False)
class Table:
    """All routes that ever had a request, as they were between two snapshots.

    Attributes:
        seconds: between them.
        totals: all rows of a kind together, of the kinds that there are.
        sums: since the agent was started.
    """

    seconds: float
    rows: tuple[Row, ...]
    totals: tuple[Row, ...]
    sums: Sums

    def sorted(self, by: Sort) -> tuple[Row, ...]:
        """The rows, the most first; those without requests come last."""
        return tuple(
            sorted(
                self.rows,
                key=lambda row: (not row.count, -_BY[by](row), -row.count, -row.ever, str(row.key)),
            )
        )


def table_of(now: Snapshot, earlier: Snapshot | None, seconds: float) -> Table:
    """What came between two snapshots of the same agent.

    Args:
        earlier: None: everything since the agent was started.
        seconds: between the two; not by their own times, which are those of a clock that may be
            set meanwhile.
    """
    routes: dict[RouteKey, _Sum] = {}
    for series in now.series:
        routes.setdefault(_route_of(series.key), _Sum()).ever += series.duration.count
    for series in since(now, earlier).series:
        routes[_route_of(series.key)].add(series)
    rows = tuple(sum_.row(key, seconds) for key, sum_ in routes.items())
    kinds = [kind for kind in Kind if any(row.key.kind is kind for row in rows)]
    totals = tuple(
        _together(sum_ for key, sum_ in routes.items() if key.kind is kind).row(
            RouteKey(kind, ""), seconds
        )
        for kind in kinds
    )
    return Table(seconds, rows, totals, now.sums)


def _route_of(key: SeriesKey) -> RouteKey:
    return RouteKey(
        key.kind,
        # Which services the others are of nobody knows.
        "" if key.overflow else str(key.resource.attributes.get("service.name", "")),
        key.method,
        key.route,
        authority_of(key.server_address, key.server_port) if key.server_address else "",
        key.overflow,
    )


def _failed(key: SeriesKey) -> bool:
    return not key.status or key.status >= LEAST_ERROR[key.kind]


@dataclass(eq=False)
class _Sum:
    """Series as they are added up."""

    ever: int = 0
    errors: int | None = 0
    durations: Histogram = field(default_factory=no_durations)
    stages: dict[str, Histogram] = field(default_factory=dict)
    acked: Histogram = field(default_factory=no_durations)

    def add(self, series: Series) -> None:
        if series.key.overflow:
            self.errors = None
        elif _failed(series.key):
            self.errors = (self.errors or 0) + series.duration.count
        self._add(series.duration, series.stages, series.acked)

    def add_up(self, other: _Sum) -> None:
        self.ever += other.ever
        if self.errors is None or other.errors is None:
            self.errors = None
        else:
            self.errors += other.errors
        self._add(other.durations, other.stages, other.acked)

    def _add(self, durations: Histogram, stages: dict[str, Histogram], acked: Histogram) -> None:
        self.durations = _add_up(self.durations, durations)
        self.acked = _add_up(self.acked, acked)
        for name, stage in stages.items():
            self.stages[name] = _add_up(self.stages.get(name, no_durations()), stage)

    def row(self, key: RouteKey, seconds: float) -> Row:
        # Not of the total: a request may be added to it a moment before its stages are.
        all_ns = sum(stage.sum_ns for stage in self.stages.values())
        stages = (
            Stage(
                name,
                owner_of(name, key.kind),
                self.stages[name],
                self.stages[name].sum_ns / all_ns if all_ns else 0.0,
            )
            for name in sorted(self.stages, key=lambda name: place_of_stage(name, key.kind))
            if self.stages[name].count
        )
        return Row(key, seconds, self.errors, self.durations, tuple(stages), self.acked, self.ever)


def _together(sums: Iterable[_Sum]) -> _Sum:
    all_of_them = _Sum()
    for one in sums:
        all_of_them.add_up(one)
    return all_of_them


def _add_up(first: Histogram, second: Histogram) -> Histogram:
    return Histogram(first.sum_ns + second.sum_ns, first.counts + second.counts)

# SPDX-License-Identifier: Apache-2.0
"""Two snapshots become rows: exact rates, quantiles, shares, and the order of rows."""

from __future__ import annotations

from dataclasses import replace

import pytest
from snapshots import SHOP, histogram, key, series, snapshot

from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner
from otelbpf.metrics.snapshot import UPPER_NS, Series, Snapshot, buckets_of
from otelbpf.top.rows import RouteKey, Row, Sort, Table, table_of

MS = 1_000_000


def rows_of(table: Table) -> dict[str, Row]:
    by_route = {row.key.route: row for row in table.rows}
    assert len(by_route) == len(table.rows)
    return by_route


def of_stages(route: str, *requests: dict[str, int]) -> Series:
    """Requests by how long each of their stages took."""
    names = dict.fromkeys(name for request in requests for name in request)
    return replace(
        series(key(route=route), [sum(request.values()) for request in requests]),
        stages={
            name: histogram(*(request[name] for request in requests if name in request))
            for name in names
        },
    )


def upper_ns(duration_ns: int) -> float:
    return float(UPPER_NS[buckets_of(duration_ns)])


def test_only_what_came_in_between_counts() -> None:
    before = snapshot(series(key(route="/a"), [MS] * 5), seconds=10)
    after = snapshot(series(key(route="/a"), [MS] * 5 + [3 * MS] * 23), seconds=12)
    (row,) = table_of(after, before, 2.0).rows
    assert (row.count, row.rate, row.ever) == (23, 11.5, 28)
    assert row.durations.sum_ns == 69 * MS
    assert row.durations.quantile_ns(0.01) == row.durations.quantile_ns(1.0) == upper_ns(3 * MS)


def test_the_clock_that_may_be_set_is_not_asked() -> None:
    before = snapshot(series(key(), [MS]), seconds=10)
    after = snapshot(series(key(), [MS] * 24), seconds=3)
    (row,) = table_of(after, before, 2.0).rows
    assert row.rate == 11.5


def test_quantiles_are_those_of_the_requests() -> None:
    durations = [MS] * 90 + [5 * MS] * 9 + [100 * MS]
    (row,) = table_of(snapshot(series(key(), durations)), None, 1.0).rows
    quantiles = [row.durations.quantile_ns(q) for q in (0.5, 0.9, 0.99, 1.0)]
    assert quantiles == [upper_ns(ns) for ns in (MS, MS, 5 * MS, 100 * MS)]


def test_statuses_of_a_route_are_one_row_and_errors_are_the_conventions() -> None:
    statuses = {200: 10, 404: 3, 503: 2, 0: 1}
    for kind, failed in ((Kind.SERVER, 2 + 1), (Kind.CLIENT, 3 + 2 + 1)):
        all_series = [series(key(kind, status=status), [MS] * n) for status, n in statuses.items()]
        (row,) = table_of(snapshot(*all_series), None, 1.0).rows
        assert (row.count, row.errors, row.error_share) == (16, failed, failed / 16)


def test_a_row_for_each_method_route_kind_service_and_upstream() -> None:
    shop = SHOP.attributes["service.name"]
    other = SHOP.merge(type(SHOP)({"service.name": "other"}))
    table = table_of(
        snapshot(
            series(key()), series(key(method="POST")), series(key(route="/b")),
            series(key(resource=other)), series(key(Kind.CLIENT)),
            series(key(Kind.CLIENT, server_address="fd00::1")), series(key(server_port=9)),
        ),
        None, 1.0,
    )  # fmt: skip
    server = Kind.SERVER, shop, "GET", "/items/{id}"
    assert (
        {row.key: row.count for row in table.rows}
        == {
            RouteKey(*server): 4,  # On two ports.
            RouteKey(Kind.SERVER, shop, "POST", "/items/{id}"): 2,
            RouteKey(Kind.SERVER, shop, "GET", "/b"): 2,
            RouteKey(Kind.SERVER, "other", "GET", "/items/{id}"): 2,
            RouteKey(Kind.CLIENT, *server[1:], "models:9000"): 2,
            RouteKey(Kind.CLIENT, *server[1:], "[fd00::1]:9000"): 2,
        }
    )
    assert [(row.key.kind, row.count) for row in table.totals] == [
        (Kind.SERVER, 10), (Kind.CLIENT, 4)
    ]  # fmt: skip


def test_a_route_that_comes_and_one_that_goes() -> None:
    old, new = series(key(route="/old"), [MS] * 2), series(key(route="/new"), [MS] * 3)
    rows = rows_of(table_of(snapshot(old, new), snapshot(old), 1.0))
    assert (rows["/new"].count, rows["/new"].ever) == (3, 3)
    gone = rows["/old"]
    assert (gone.count, gone.ever, gone.rate, gone.errors, gone.stages) == (0, 2, 0.0, 0, ())
    assert (gone.longest, gone.shares(), gone.durations.quantile_ns(0.99)) == (None, {}, 0.0)


def test_no_requests() -> None:
    empty = replace(snapshot(), series=())
    for earlier in (None, empty):
        table = table_of(empty, earlier, 1.0)
        assert (table.rows, table.totals) == ((), ())
    (row,) = table_of(snapshot(series()), snapshot(series()), 0.0).rows
    assert row.rate == 0.0


def test_stages_are_in_the_order_of_the_way_and_their_shares_are_of_all_time() -> None:
    waited = {"queued_to_woken": 1 * MS, "woken_to_read": 1 * MS, "read_to_write": 6 * MS}
    at_once = {"read_to_write": 2 * MS, "queued_to_read": 10 * MS}
    (row,) = table_of(snapshot(of_stages("/a", waited, at_once)), None, 2.0).rows
    assert [(stage.name, stage.share, row.rate_of(stage.durations)) for stage in row.stages] == [
        ("queued_to_woken", 0.05, 0.5),
        ("queued_to_read", 0.5, 0.5),
        ("woken_to_read", 0.05, 0.5),
        ("read_to_write", 0.4, 1.0),
    ]
    assert row.longest is not None
    assert (row.longest.name, row.longest.durations.mean_ns) == ("queued_to_read", 10 * MS)
    assert row.shares() == pytest.approx({Owner.WAITING: 0.6, Owner.APPLICATION: 0.4})
    (total,) = table_of(snapshot(of_stages("/a", waited), of_stages("/b", at_once)), None, 2).totals
    assert total.shares() == pytest.approx(row.shares())


def test_whose_a_stage_is_depends_on_the_side() -> None:
    """Without XDP an upstream's answer begins with traffic control."""
    stages = {
        "tc_out_to_tc": histogram(7 * MS),
        "tc_to_queued": histogram(MS),
        "queued_to_ended": histogram(2 * MS),
    }
    for kind, shares in (
        (Kind.CLIENT, {Owner.PEER: 0.9, Owner.RECEIVE: 0.1}),
        (Kind.SERVER, {Owner.PEER: 0.7, Owner.RECEIVE: 0.1, Owner.WAITING: 0.2}),
    ):
        (row,) = table_of(snapshot(replace(series(key(kind)), stages=stages)), None, 1.0).rows
        assert row.shares() == pytest.approx(shares)


def test_the_acknowledgement_is_no_part_of_the_request() -> None:
    before = snapshot(series(key(route="/a"), [MS] * 2))
    after = snapshot(series(key(route="/a"), [MS] * 5), series(key(route="/b"), [MS]))
    table = table_of(after, before, 2.0)
    rows = rows_of(table)
    assert {route: (row.acked.count, row.acked.mean_ns) for route, row in rows.items()} == {
        "/a": (3, 7_000),
        "/b": (1, 7_000),
    }
    assert rows["/a"].durations.sum_ns == 3 * MS
    assert sum(rows["/a"].shares().values()) == pytest.approx(1.0)
    (total,) = table.totals
    assert (total.acked.count, total.acked.sum_ns) == (4, 28_000)


def test_the_others_are_a_row_whose_errors_are_not_known() -> None:
    others = series(key(overflow=True, method="", route="", status=0), [MS] * 4)
    table = table_of(snapshot(series(key()), others), None, 1.0)
    rows = rows_of(table)
    assert (rows[""].key, rows[""].count) == (RouteKey(Kind.SERVER, "", overflow=True), 4)
    assert (rows[""].errors, rows["/items/{id}"].errors) == (None, 0)
    (total,) = table.totals
    assert (total.count, total.errors) == (6, None)


def sortable() -> Snapshot:
    return snapshot(
        series(key(route="/often"), [MS] * 9),
        series(key(route="/slow"), [100 * MS]),
        series(key(route="/long"), [50 * MS] * 3),
        series(key(route="/failing", status=500), [MS] * 2),
    )


@pytest.mark.parametrize(
    ("by", "routes"),
    [
        (Sort.RATE, ["/often", "/long", "/failing", "/slow"]),
        (Sort.P99, ["/slow", "/long", "/often", "/failing"]),
        (Sort.ERRORS, ["/failing", "/often", "/long", "/slow"]),
        (Sort.TIME, ["/long", "/slow", "/often", "/failing"]),
    ],
)
def test_order(by: Sort, routes: list[str]) -> None:
    quiet = series(key(route="/quiet"), [900 * MS] * 50)
    before = replace(snapshot(), series=(quiet,))
    table = table_of(replace(sortable(), series=(quiet, *sortable().series)), before, 1.0)
    assert [row.key.route for row in table.sorted(by)] == [*routes, "/quiet"]


def test_sorting_goes_round() -> None:
    turns = [Sort.RATE]
    for _ in Sort:
        turns.append(turns[-1].next)
    assert turns == [*Sort, Sort.RATE]

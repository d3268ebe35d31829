# SPDX-License-Identifier: Apache-2.0
"""Which metrics there are, what they are called, and whose they are."""

from __future__ import annotations

from dataclasses import replace

import pytest
from opentelemetry.sdk.metrics.export import AggregationTemporality
from opentelemetry.sdk.resources import Resource
from opentelemetry.semconv.metrics.http_metrics import (
    HTTP_CLIENT_REQUEST_DURATION,
    HTTP_SERVER_REQUEST_DURATION,
)
from snapshots import (
    AGENT,
    SHOP,
    START_UNIX_NS,
    by_name,
    key,
    points,
    series,
    snapshot,
    sums,
    values,
)

from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Coverage, Gap, Lost
from otelbpf.metrics.instruments import MetricStyle, Temporality, Untold, metrics_of
from otelbpf.metrics.points import HistogramStyle
from otelbpf.metrics.since import Receiver
from otelbpf.metrics.snapshot import Series, SeriesKey

CUMULATIVE, DELTA, LOWMEMORY = Temporality
EXPLICIT = HistogramStyle.EXPLICIT
SERVER_DURATION = "http.server.request.duration"

OF_SERVICES = {
    "http.server.request.duration": "s",
    "otelbpf.stage.duration": "s",
    "otelbpf.tcp.ack.duration": "s",
    "otelbpf.http.request.size": "By",
    "otelbpf.http.response.size": "By",
    "otelbpf.tcp.retransmits": "{segment}",
    "otelbpf.tcp.out_of_order": "{segment}",
}
OF_THE_AGENT = {
    "otelbpf.connections.opened": "{connection}",
    "otelbpf.connections.closed": "{connection}",
    "otelbpf.connections.reset": "{connection}",
    "otelbpf.connections.refused": "{connection}",
    "otelbpf.connections.unanswered": "{connection}",
    "otelbpf.connections.unseen": "{connection}",
    "otelbpf.connections.own": "{connection}",
    "otelbpf.connection.handshake.duration": "s",
    "otelbpf.connection.accept_queue.duration": "s",
    "otelbpf.requests.seen": "{request}",
    "otelbpf.requests.exported": "{request}",
    "otelbpf.requests.sampled_out": "{request}",
    "otelbpf.requests.ignored": "{request}",
    "otelbpf.requests.lost": "{request}",
    "otelbpf.requests.in_flight": "{request}",
    "otelbpf.segments.stray": "{segment}",
    "otelbpf.segments.unasked": "{segment}",
    "otelbpf.segments.uncertain": "{segment}",
    "otelbpf.joins": "{join}",
    "otelbpf.hooks.missed": "{call}",
    "otelbpf.interfaces.unmeasured": "{interface}",
    "otelbpf.interfaces.unmeasured.time": "s",
    "otelbpf.series.ended.requests": "{request}",
    "otelbpf.metrics.exports.failed": "{export}",
    "otelbpf.metrics.points.lost": "{point}",
}


@pytest.mark.parametrize(("resource", "expected"), [(SHOP, OF_SERVICES), (AGENT, OF_THE_AGENT)])
def test_names_units_and_whose(resource: Resource, expected: dict[str, str]) -> None:
    metrics = by_name(metrics_of(snapshot()), resource)
    assert {name: metric.unit for name, metric in metrics.items()} == expected
    assert all(metric.description for metric in metrics.values())


def test_durations_are_called_as_the_conventions_have_it() -> None:
    assert SERVER_DURATION == HTTP_SERVER_REQUEST_DURATION
    client = metrics_of(snapshot(series(key(Kind.CLIENT))))
    assert HTTP_CLIENT_REQUEST_DURATION in by_name(client)


def test_services_are_told_apart() -> None:
    bank = Resource({"service.name": "bank"})
    data = metrics_of(snapshot(series(), series(key(resource=bank), [1, 2, 3])))
    counts = {
        str(of.resource.attributes["service.name"]): by_name(data, of.resource)
        for of in data.resource_metrics
    }
    assert counts.keys() == {"shop", "bank", "otelbpf"}
    (point,) = counts["bank"][SERVER_DURATION].data.data_points
    assert point.count == 3


OF_ALL = {"url.scheme": "http", "network.protocol.name": "http"}
STATUS = "http.response.status_code"


@pytest.mark.parametrize(
    ("of", "expected"),
    [
        (key(), {"http.route": "/items/{id}", "server.port": 8080, STATUS: 200}),
        (key(route=""), {"server.port": 8080, STATUS: 200}),
        (
            key(Kind.CLIENT, route=""),
            {"server.address": "models", "server.port": 9000, STATUS: 200},
        ),
        (key(status=429), {"http.route": "/items/{id}", "server.port": 8080, STATUS: 429}),
        (
            key(status=503),
            {"http.route": "/items/{id}", "server.port": 8080, STATUS: 503, "error.type": "503"},
        ),
        (
            key(status=0, ended_by="client_closed"),
            {"http.route": "/items/{id}", "server.port": 8080, "error.type": "client_closed"},
        ),
        (
            key(Kind.CLIENT, status=401),
            {
                "url.template": "/items/{id}",
                "server.address": "models",
                "server.port": 9000,
                STATUS: 401,
                "error.type": "401",
            },
        ),
    ],
)
def test_attributes(of: SeriesKey, expected: dict[str, object]) -> None:
    """What a server answers with 4xx was the client's error."""
    (point,) = points(metrics_of(snapshot(series(of))), f"http.{of.kind}.request.duration")
    assert point.attributes == {"http.request.method": "GET", **OF_ALL, **expected}


def test_stages_and_counters_have_the_attributes_of_the_total_and_their_kind() -> None:
    """All but those that are the same for all: there are a dozen stages for each total."""
    data = metrics_of(snapshot())
    (total,) = points(data, SERVER_DURATION)
    with_kind = {**total.attributes, "otelbpf.kind": "server"}
    assert {name: with_kind.pop(name) for name in OF_ALL} == OF_ALL
    stages = points(data, "otelbpf.stage.duration")
    assert [stage.attributes for stage in stages] == [
        {**with_kind, "otelbpf.stage": "nic_to_read"},
        {**with_kind, "otelbpf.stage": "read_to_tc_out"},
    ]
    assert sum(stage.sum for stage in stages) == pytest.approx(total.sum)
    for name, value in (("request.size", 200), ("response.size", 2_000)):
        (point,) = points(data, f"otelbpf.http.{name}")
        assert (point.attributes, point.value) == (with_kind, value)
    assert values(data, "otelbpf.tcp.retransmits") == 1


def test_overflow() -> None:
    """The specification's attribute, and nothing that only some of its requests have."""
    of = SeriesKey(Kind.SERVER, SHOP, overflow=True)
    data = metrics_of(snapshot(series(), series(of)))
    assert points(data, SERVER_DURATION)[1].attributes == {"otel.metric.overflow": True}
    assert points(data, "otelbpf.stage.duration")[2].attributes == {
        "otel.metric.overflow": True,
        "otelbpf.kind": "server",
        "otelbpf.stage": "nic_to_read",
    }


def test_connections() -> None:
    data = metrics_of(snapshot())
    for name, count in (("opened", 4), ("closed", 3), ("reset", 1), ("refused", 2)):
        assert values(data, f"otelbpf.connections.{name}", "otelbpf.kind") == {"server": count}
    # Of no kind in particular, and counted elsewhere only.
    (own,) = points(data, "otelbpf.connections.own")
    assert (own.attributes, own.value) == ({}, 1)
    (handshake,) = points(data, "otelbpf.connection.handshake.duration")
    assert (handshake.count, handshake.sum) == (3, pytest.approx(90e-6))
    (queue,) = points(data, "otelbpf.connection.accept_queue.duration")
    assert (queue.count, queue.attributes) == (1, {"otelbpf.kind": "server"})


def test_the_agents_own_counters() -> None:
    data = metrics_of(snapshot(), untold=Untold(2, {Lost.REJECTED: 3}))
    assert values(data, "otelbpf.requests.seen") == 10
    assert values(data, "otelbpf.requests.exported") == 4
    assert values(data, "otelbpf.requests.sampled_out") == 3
    assert values(data, "otelbpf.requests.in_flight") == 1
    lost = values(data, "otelbpf.requests.lost", "otelbpf.reason")
    assert lost == {**{reason.value: 0 for reason in Lost}, "ring_full": 2}
    assert values(data, "otelbpf.joins", "otelbpf.join") == {"marks_joined": 6, "marks_unknown": 1}
    assert values(data, "otelbpf.hooks.missed", "otelbpf.hook") == {"tracepoint tcp_probe": 5}
    assert values(data, "otelbpf.metrics.exports.failed") == 2
    assert values(data, "otelbpf.metrics.points.lost", "otelbpf.reason") == {
        "rejected": 3,
        "refused": 0,
        "too_large": 0,
        "export_failed": 0,
    }


def test_what_can_fall_is_no_counter() -> None:
    metrics = by_name(metrics_of(snapshot()))
    assert [
        name for name, metric in metrics.items() if not getattr(metric.data, "is_monotonic", True)
    ] == ["otelbpf.requests.in_flight", "otelbpf.interfaces.unmeasured"]


@pytest.mark.parametrize(
    ("temporality", "recent"),
    [
        (CUMULATIVE, set()),
        (LOWMEMORY, {SERVER_DURATION}),
        (DELTA, {SERVER_DURATION, "otelbpf.requests.seen", "otelbpf.http.request.size"}),
    ],
)
def test_temporalities(temporality: Temporality, recent: set[str]) -> None:
    """What each counts, since when, and that it says so."""
    early = snapshot(series(durations_ns=[1_000]), seconds=10)
    late = snapshot(series(durations_ns=[1_000, 2_000, 3_000]), seconds=20, sums=sums(seen=17))
    data = metrics_of(late, Receiver(early), MetricStyle(EXPLICIT, temporality))
    since_start = {
        SERVER_DURATION: 3,
        "otelbpf.requests.seen": 17,
        "otelbpf.http.request.size": 300,
        "otelbpf.requests.in_flight": 1,
    }
    since_last = {SERVER_DURATION: 2, "otelbpf.requests.seen": 7, "otelbpf.http.request.size": 200}
    for name, of_all in since_start.items():
        metric = by_name(data)[name]
        (point,) = metric.data.data_points
        value = point.count if name == SERVER_DURATION else point.value
        is_recent = name in recent
        assert value == (since_last[name] if is_recent else of_all), name
        start = early.unix_ns if is_recent else START_UNIX_NS
        assert (point.start_time_unix_nano, point.time_unix_nano) == (start, late.unix_ns), name
        assert metric.data.aggregation_temporality is (
            AggregationTemporality.DELTA if is_recent else AggregationTemporality.CUMULATIVE
        ), name


def test_the_first_export_of_deltas_is_of_all_since_the_start() -> None:
    data = metrics_of(snapshot(), style=MetricStyle(EXPLICIT, DELTA))
    (point,) = points(data, SERVER_DURATION)
    assert (point.count, point.start_time_unix_nano) == (2, START_UNIX_NS)


def of_overflow(*durations_ns: int) -> Series:
    return series(SeriesKey(Kind.SERVER, SHOP, overflow=True), durations_ns)


@pytest.mark.parametrize("temporality", [CUMULATIVE, LOWMEMORY, DELTA])
def test_a_series_that_has_ended_is_not_told_again(temporality: Temporality) -> None:
    """Of its three requests two were told; all are in the overflow, and one begins it again."""
    early = snapshot(of_overflow(10), series(durations_ns=[3_000, 5_000]), seconds=10)
    again = replace(series(durations_ns=[9_000]), since_unix_ns=START_UNIX_NS + 15 * 10**9)
    late = snapshot(of_overflow(10, 3_000, 5_000, 7_000), again, seconds=20)
    data = metrics_of(late, Receiver(early), MetricStyle(EXPLICIT, temporality))
    told = {"overflow" if "otel.metric.overflow" in point.attributes else "again": point
            for point in points(data, SERVER_DURATION)}  # fmt: skip
    first = START_UNIX_NS if temporality is CUMULATIVE else early.unix_ns
    assert {name: (p.count, p.start_time_unix_nano) for name, p in told.items()} == {
        "overflow": (2 if temporality is CUMULATIVE else 1, first),
        "again": (1, again.since_unix_ns),
    }
    assert told["overflow"].sum == pytest.approx(
        (10 + 7_000 if temporality is CUMULATIVE else 7_000) / 1e9
    )
    sizes = {"otel.metric.overflow" in point.attributes: point.value
             for point in points(data, "otelbpf.http.request.size")}  # fmt: skip
    assert sizes == {True: 100 if temporality is DELTA else 200, False: 100}
    # With them the counts of all series are those of all requests; deltas need no such thing.
    if temporality is not DELTA:
        assert values(data, "otelbpf.series.ended.requests", "otelbpf.kind") == {"server": 2}
    # What follows has its own start again.
    (seen,) = points(data, "otelbpf.requests.seen")
    assert seen.start_time_unix_nano == (early.unix_ns if temporality is DELTA else START_UNIX_NS)


def test_nothing_starts_after_it_was_looked_at() -> None:
    """A series may end, and begin again, while a snapshot is being taken."""
    now = snapshot(replace(series(), since_unix_ns=START_UNIX_NS + 11 * 10**9), seconds=10)
    (point,) = points(metrics_of(now), SERVER_DURATION)
    assert point.start_time_unix_nano == point.time_unix_nano == now.unix_ns


def test_deltas_with_nothing_new_are_left_out() -> None:
    data = metrics_of(snapshot(seconds=20), Receiver(snapshot()), MetricStyle(EXPLICIT, DELTA))
    assert SERVER_DURATION not in by_name(data)
    assert values(data, "otelbpf.requests.seen") == 0


def test_interfaces_that_are_not_measured() -> None:
    """All reasons of all that were asked for, so that the first one is seen as a rise."""
    data = metrics_of(snapshot())
    for name, expected in (
        ("otelbpf.interfaces.unmeasured", {("eth1", "gone"): 1}),
        ("otelbpf.interfaces.unmeasured.time", {("eth1", "gone"): 2.5, ("eth1", "behind"): 0.5}),
    ):
        told = {
            (point.attributes["network.interface.name"], point.attributes["otelbpf.reason"]):
            point.value
            for point in points(data, name)
        }  # fmt: skip
        assert told == {
            (interface, gap.value): expected.get((interface, gap.value), 0)
            for interface in ("eth0", "eth1")
            for gap in Gap
        }


def test_how_long_it_was_not_since_the_last_export() -> None:
    now = replace(sums(), interfaces={"eth0": Coverage(None, {Gap.GONE: 4.0})})
    earlier = replace(sums(), interfaces={"eth0": Coverage(Gap.GONE, {Gap.GONE: 1.5})})
    data = metrics_of(
        snapshot(sums=now),
        Receiver(snapshot(sums=earlier, seconds=5)),
        MetricStyle(temporality=DELTA),
    )
    times = values(data, "otelbpf.interfaces.unmeasured.time", "otelbpf.reason")
    assert times["gone"] == 2.5
    assert values(data, "otelbpf.interfaces.unmeasured", "otelbpf.reason")["gone"] == 0

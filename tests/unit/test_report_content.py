# SPDX-License-Identifier: Apache-2.0
"""From files to the numbers on the page: routes, stages, ledgers, and what is below a request."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import recorded
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from recorded import CLIENT, SERVER, STAGES, export, request, span, write
from samples import SMALL, description, numbered, requests

from otelbpf.kernel.records import Stamp
from otelbpf.report import content as content_module
from otelbpf.report import selection
from otelbpf.report.content import content
from otelbpf.report.recording import read
from otelbpf.traces.description import StageStyle
from otelbpf.traces.spans import readable_spans

Json = dict[str, Any]
RECORDS = Path(__file__).resolve().parents[1] / "records"


@pytest.fixture
def made(tmp_path: Path) -> Any:
    """What the page of these exports holds."""

    def make(*exports: Json) -> Json:
        told = content(read([write(tmp_path / "spans", *exports)]), None)
        assert json.loads(json.dumps(told, allow_nan=False))
        return told

    return make


def by_name(told: Json) -> dict[str, Json]:
    return {
        f"{route['method']} {route['host']}{route['template']}": route for route in told["routes"]
    }


def shown(told: Json) -> dict[int, Json]:
    """Single requests by number, which is their span's id."""
    return {int(each["span"], 16): each for each in told["requests"]}


def figures(found: Json) -> tuple[int, ...]:
    return tuple(
        found[name]
        for name in ("count", "sum_ns", "least_ns", "median_ns", "p90_ns", "p99_ns", "most_ns")
    )


def test_routes_and_their_stages(made: Any) -> None:
    """Ten requests of one route, whose handlers take 1 to 10 ms, one of another that failed."""
    slow = [
        request(
            n,
            path=f"/items/{n}",
            after_ns=n * 100_000_000,
            stages={**STAGES, "read_to_write": n * 1_000_000},
        )
        for n in range(1, 11)
    ]
    failed = request(
        99,
        path="/pay",
        after_ns=0,
        status=500,
        error="500",
        stages={"nic_to_tc": 5, "tc_to_tc_out": 10_000_000_000},
    )
    told = made(export(*slow[:4]), export(*slow[4:], failed))
    assert [route["template"] for route in told["routes"]] == ["/pay", "/items/{id}"]  # by p99
    items, pay = by_name(told)["GET /items/{id}"], by_name(told)["GET /pay"]
    rest = sum(STAGES.values()) - STAGES["read_to_write"]
    ms = 1_000_000
    assert figures(items["total"]) == (
        10, 55 * ms + 10 * rest, ms + rest, 5 * ms + rest, 9 * ms + rest, 10 * ms + rest,
        10 * ms + rest,
    )  # fmt: skip
    names = [told["stages"][stage["stage"]]["name"] for stage in items["stages"]]
    assert names == list(STAGES)
    assert figures(items["stages"][4]) == (10, 55 * ms, ms, 5 * ms, 9 * ms, 10 * ms, 10 * ms)
    assert items["stages"][4]["first_bin"] == 60
    assert items["stages"][4]["bins"] == (1, 0, 0, 1, 1, 0, 2, 1, 1, 2, 1)
    assert figures(items["stages"][0]) == (10, 10_000, 1_000, 1_000, 1_000, 1_000, 1_000)
    assert (items["failed"], pay["failed"], pay["total"]["count"]) == (0, 1, 1)
    # From the first stamp of all to the last: 0 to 10 s and 5 ns.
    assert told["seconds"] == 10.000000005
    assert items["rate"] == 10 / 10.000000005
    assert (told["first"], told["last"]) == (
        "2026-09-21T14:13:20.123456789Z",
        "2026-09-21T14:13:30.123456794Z",
    )
    assert told["kinds"]["server"]["failed"] == 1
    assert figures(told["kinds"]["server"]["total"])[0] == 11
    assert (told["requests_read"], told["failed_read"], told["failed_shown"]) == (11, 1, 1)
    assert (told["spans_read"], told["untiled"], told["orphans"]) == (10 * 8 + 3, 0, 0)


def test_lines_that_are_not_whole_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "spans", export(request()))
    assert content(read([path]), None)["torn_lines"] == 0
    path.write_text('{"resourceSp\n' + path.read_text())
    assert content(read([path]), None)["torn_lines"] == 1


def test_one_request_has_no_rate_when_it_took_no_time(made: Any) -> None:
    told = made(export(request(stages={"nic": 0})))
    assert (told["seconds"], told["routes"][0]["rate"]) == (0, None)
    assert told["requests"][0]["ledger"] == [("nic", 0)]


@pytest.mark.parametrize("style", StageStyle)
def test_both_styles_of_stages_as_the_agent_writes_them(style: StageStyle, tmp_path: Path) -> None:
    exporter = FileSpanExporter(path=str(tmp_path / "spans"))
    told_by, sent = description(stages=style), numbered(23)
    for row in range(len(sent)):
        exporter.export(readable_spans(told_by, sent[row : row + 1]))
    exporter.shutdown()
    told = content(read([tmp_path / "spans"]), None)
    (route,) = told["routes"]
    *bounds, acked = sorted(SMALL)
    assert acked is Stamp.ACKED
    times = [SMALL[stamp] for stamp in bounds]
    names = [stamp.name.lower() for stamp in bounds]
    assert (route["method"], route["template"], route["port"]) == ("GET", "/items/{id}", 8080)
    assert route["service"] == "shop"
    assert [told["stages"][stage["stage"]]["name"] for stage in route["stages"]] == [
        f"{first}_to_{second}" for first, second in itertools.pairwise(names)
    ]
    assert [stage["p99_ns"] for stage in route["stages"]] == [
        second - first for first, second in itertools.pairwise(times)
    ]
    assert figures(route["total"]) == (23, 23 * 412_345, *[412_345] * 5)
    assert figures(route["acked"]) == (23, 23 * 37_656, *[37_656] * 5)
    assert (told["untiled"], told["orphans"]) == (0, 0)
    assert len(told["requests"]) == 20
    for each in told["requests"]:
        assert each["ledger"] == [*zip(names, times, strict=True), ("acked", 450_001)]
        assert (each["total_ns"], each["acked_ns"]) == (412_345, 37_656)
        keys = [key for key, _ in each["attributes"]]
        assert "url.path" in keys
        assert not any(key.startswith("otelbpf.stage.") for key in keys)


def test_what_the_collectors_file_exporter_wrote() -> None:
    """Both styles in one file (records/collector-file.txt), when requests ended with `acked`."""
    told = content(read([RECORDS / "collector-file.jsonl"]), None)
    (route,) = told["routes"]
    assert (route["template"], route["total"]["count"], told["untiled"]) == ("/items/{id}", 3, 0)
    assert [stage["count"] for stage in route["stages"]] == [3] * 9
    assert figures(route["total"]) == (3, 3 * 450_001, *[450_001] * 5)
    assert [each["ledger"] for each in told["requests"]] == [
        [(stamp.name.lower(), SMALL[stamp]) for stamp in sorted(SMALL)]
    ] * 3
    assert told["stages"][route["stages"][-1]["stage"]] == {
        "name": "tc_out_to_acked",
        "owner": {"server": "peer", "client": "peer"},
        "shade": 0,
    }
    assert (route["acked"], {each["acked_ns"] for each in told["requests"]}) == (None, {None})


def test_the_acknowledgement_comes_after_the_request(made: Any) -> None:
    """In no sum, and only of the requests whose it was seen."""
    told = made(
        export(
            request(1, acked_ns=40_000_000),
            request(2, acked_ns=2_000),
            request(3),
            request(4, path="/b", absent=["acked"]),
        )
    )
    items, other = by_name(told)["GET /items/{id}"], by_name(told)["GET /b"]
    assert figures(items["total"]) == (3, 300_000, *[100_000] * 5)
    assert figures(items["acked"]) == (2, 40_002_000, 2_000, 2_000, *[40_000_000] * 3)
    assert other["acked"] is None
    assert told["seconds"] == 0.0001
    ledgers = {number: dict(each["ledger"]) for number, each in shown(told).items()}
    assert [ledger.get("acked", "not told") for ledger in ledgers.values()] == [
        40_100_000,
        102_000,
        "not told",
        None,
    ]
    assert list(ledgers[1]) == [*list(ledgers[3]), "acked"]
    assert told["meanings"]["acked"]
    assert told["untiled"] == 0


def test_a_request_that_was_cut_short_is_as_long_as_it_was(made: Any) -> None:
    stages = {"nic_to_tc": 5, "tc_to_read": 6, "read_to_ended": 30_000_000_000}
    told = made(
        export(request(stages=stages, error="client_closed", status=0, absent=["tc_out", "acked"]))
    )
    (got,), (route,) = told["requests"], told["routes"]
    assert (got["error"], got["total_ns"], told["untiled"]) == ("client_closed", 30_000_000_011, 0)
    assert got["ledger"] == [
        ("nic", 0),
        ("tc", 5),
        ("read", 11),
        ("tc_out", None),
        ("ended", 30_000_000_011),
        ("acked", None),
    ]
    assert told["stages"][route["stages"][-1]["stage"]]["owner"]["server"] == "application"
    assert told["meanings"]["ended"]


def test_the_legend_is_the_tables(made: Any) -> None:
    told = made(export(request()))
    assert [(each["name"], each["label"]) for each in told["owners"]] == [
        ("receive", "receive"),
        ("waiting", "waiting"),
        ("application", "application"),
        ("send", "send"),
        ("peer", "peer + network"),
        ("unknown", "unknown"),
    ]


def test_attributes_have_no_order(made: Any) -> None:
    """Each stage begins with the stamp that the one before it ends with."""
    (one,) = request(as_attributes=True)
    one["attributes"].reverse()
    (got,) = made(export([one]))["requests"]
    at, ledger = 0, [("nic", 0)]
    for name, ns in STAGES.items():
        ledger.append((name.partition("_to_")[2], at := at + ns))
    assert got["ledger"] == ledger


def test_a_span_that_came_twice_counts_once(made: Any) -> None:
    """Exporters send again what may not have arrived."""
    once, twice = request(1), request(2, as_attributes=True)
    told = made(export(once, twice), export(once), export(twice, once))
    (route,) = told["routes"]
    assert [route["total"]["count"], *(stage["count"] for stage in route["stages"])] == [2] * 8
    assert (told["untiled"], told["orphans"]) == (0, 0)


def test_stages_may_come_before_their_request_and_in_another_file(tmp_path: Path) -> None:
    head, *stages = request(1)
    first = write(tmp_path / "first", export(stages[3:]), export(request(2)))
    second = write(tmp_path / "second", export(stages[:3]), export([head]))
    told = content(read([first, second]), None)
    assert (told["untiled"], told["orphans"]) == (0, 0)
    assert shown(told)[1]["ledger"] == shown(told)[2]["ledger"]
    assert told["files"] == [str(first), str(second)]


def test_stages_that_were_not_written_are_told(made: Any) -> None:
    head, *stages = request(1)
    told = made(export([head], stages[2:], request(2)[1:], request(3)))
    assert (told["untiled"], told["orphans"], told["requests_read"]) == (1, 7, 2)
    assert [stage["count"] for stage in told["routes"][0]["stages"]] == [1, 1, 2, 2, 2, 2, 2]


def test_what_tells_routes_apart(made: Any) -> None:
    """Method, service, port, kind, and for a client's the host; a template where it is told."""
    told = made(
        export(request(1, path="/a/1"), request(2, path="/a/2"),
               request(3, path="/a/3", **{"http.request.method": "POST"}),
               request(4, path="/a/4", **{"network.local.port": 9090}),
               request(5, path="/a/5", kind=CLIENT), request(6, path="/a/6?x=/7", kind=CLIENT),
               request(7, path="/a/7", kind=CLIENT, host="[::1]:80"),
               request(8, path="/a/seven", **{"http.route": "/a/:name"}),
               request(10, path="/a/b", kind=CLIENT, **{"url.template": "/a/{letter}"})),
        export(request(9, path="/a/9"), service="till"),
    )  # fmt: skip
    assert {(r["service"], r["kind"], r["method"], r["port"], r["host"], r["template"]):
            r["total"]["count"] for r in told["routes"]} == {
        ("shop", "server", "GET", 8080, "", "/a/{id}"): 2,
        ("shop", "server", "POST", 8080, "", "/a/{id}"): 1,
        ("shop", "server", "GET", 9090, "", "/a/{id}"): 1,
        ("shop", "client", "GET", 0, "up:9000", "/a/{id}"): 2,
        ("shop", "client", "GET", 0, "[::1]:80", "/a/{id}"): 1,
        ("shop", "client", "GET", 0, "up:9000", "/a/{letter}"): 1,
        ("shop", "server", "GET", 8080, "", "/a/:name"): 1,
        ("till", "server", "GET", 8080, "", "/a/{id}"): 1,
    }  # fmt: skip
    assert {kind: each["total"]["count"] for kind, each in told["kinds"].items()} == {
        "server": 6,
        "client": 4,
    }


def test_a_request_without_attributes(made: Any) -> None:
    bare = span("GET", 1, 1_000, 5, kind=SERVER)
    told = made(export([bare]))
    (route,), (one,) = told["routes"], told["requests"]
    assert (route["method"], route["template"], route["port"]) == ("GET", "", 0)
    assert (one["status"], one["ledger"], one["attributes"], one["stages"]) == (None, [], [], [])
    assert told["untiled"] == 1


def test_absent_stamps_are_where_they_would_have_been(made: Any) -> None:
    stages = {"nic_to_tc": 5, "tc_to_read": 6, "read_to_tc_out_last": 7}
    absent = ["acked2", "tc_out", "woken", "tcp", "read"]
    (got,) = made(export(request(stages=stages, absent=absent)))["requests"]
    assert got["ledger"] == [
        ("nic", 0),
        ("tc", 5),
        ("tcp", None),
        ("woken", None),
        ("read", 11),
        ("tc_out", None),
        ("tc_out_last", 18),
        ("acked2", None),
    ]


def test_stamps_of_one_nanosecond_keep_the_order_of_the_way(made: Any) -> None:
    stages = {"nic_to_tc": 0, "tc_to_tcp": 0, "tcp_to_queued": 4, "queued_to_read": 0,
              "read_to_ended": 0}  # fmt: skip
    told = made(export(request(stages=dict(reversed(stages.items())), as_attributes=True)))
    (got,) = told["requests"]
    assert [(told["stages"][stage]["name"], at, long) for stage, at, long in got["stages"]] == [
        ("nic_to_tc", 0, 0),
        ("tc_to_tcp", 0, 0),
        ("tcp_to_queued", 0, 4),
        ("queued_to_read", 4, 0),
        ("read_to_ended", 4, 0),
    ]
    assert [stamp for stamp, _ in got["ledger"]] == ["nic", "tc", "tcp", "queued", "read", "ended"]


def test_a_request_is_told_in_the_order_of_time(made: Any) -> None:
    """A handler that streams ends long after the first byte was written."""
    stages = {
        "nic_to_read": 1,
        "read_to_write": 2,
        "write_to_handler_end": 3,
        "handler_end_to_tc_out_last": 4,
    }
    told = made(export(request(stages=stages)))
    (got,), (route,) = told["requests"], told["routes"]
    assert [told["stages"][stage]["name"] for stage, _, _ in got["stages"]] == list(stages)
    assert got["ledger"] == [
        ("nic", 0),
        ("read", 1),
        ("write", 3),
        ("handler_end", 6),
        ("tc_out_last", 10),
    ]
    # All requests of a route have one order, by whose the time was.
    assert [told["stages"][stage["stage"]]["name"] for stage in route["stages"]] == [
        "nic_to_read",
        "read_to_write",
        "write_to_handler_end",
        "handler_end_to_tc_out_last",
    ]


def test_a_real_clients_way(tmp_path: Path) -> None:
    """Its stages come in the order in which it passes them: write first."""
    from otelbpf.kernel.records import RequestFlag

    times = {Stamp.WRITE: 0, Stamp.TC_OUT: 7, Stamp.NIC: 100, Stamp.TC: 110, Stamp.READ: 150}
    flags = RequestFlag.CLIENT | RequestFlag.REQUEST_ANSWERED
    client = requests(times, flags=flags, resource=Resource({}))
    exporter = FileSpanExporter(path=str(tmp_path / "spans"))
    exporter.export(readable_spans(description(), client))
    exporter.shutdown()
    told = content(read([tmp_path / "spans"]), None)
    (route,), (one,) = told["routes"], told["requests"]
    assert [told["stages"][stage["stage"]]["name"] for stage in route["stages"]] == [
        "write_to_tc_out",
        "tc_out_to_nic",
        "nic_to_tc",
        "tc_to_read",
    ]
    assert one["ledger"] == [
        ("write", 0),
        ("tc_out", 7),
        ("nic", 100),
        ("tc", 110),
        ("tcp", None),
        ("queued", None),
        ("woken", None),
        ("running", None),
        ("read", 150),
    ]
    assert (route["host"], route["template"]) == ("shop.example:8080", "/items/{id}")


def test_the_slowest_and_the_latest_failed(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SLOWEST", 3)
    monkeypatch.setattr(selection, "FAILED", 4)
    good = [request(n, stages={"nic_to_tc_out": 1_000 - n}, after_ns=n) for n in range(1, 11)]
    bad = [
        request(
            n,
            stages={"nic_to_tc_out": n},
            after_ns=n,
            path="/pay" if n % 2 else "/items/1",
            error="500",
        )
        for n in range(100, 110)
    ]
    told = made(export(*good, *bad))
    spans = {number: int(each["span"], 16) for number, each in enumerate(told["requests"])}
    items, pay = by_name(told)["GET /items/{id}"], by_name(told)["GET /pay"]
    assert [spans[n] for n in items["slowest"]] == [1, 2, 3]
    assert [spans[n] for n in pay["slowest"]] == [109, 107, 105]
    assert [spans[n] for n in items["failures"]] == [108, 106]
    assert [spans[n] for n in pay["failures"]] == [109, 107]
    assert (told["failed_read"], told["failed_shown"]) == (10, 4)
    assert sorted(spans.values()) == [1, 2, 3, 105, 106, 107, 108, 109]


def test_too_many_routes_share_a_place(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(content_module, "MOST_ROUTES", 2)
    spans, number = [], 0
    for path, many, kind in (
        ("/a", 5, SERVER),
        ("/b", 1, SERVER),
        ("/c", 4, CLIENT),
        ("/d", 2, SERVER),
        ("/e", 3, CLIENT),
    ):
        for _ in range(many):
            spans.append(request(number := number + 1, path=path, kind=kind))
    told = made(export(*spans))
    assert {name: route["total"]["count"] for name, route in by_name(told).items()} == {
        "GET /a": 5,
        "GET up:9000/c": 4,
        " 2 more routes": 3,
        " 1 more routes": 3,
    }
    assert told["routes_merged"] == 3
    assert sum(len(route["slowest"]) for route in told["routes"]) == 15


def tree(told: Json, number: int) -> list[tuple[int, str, int]]:
    """(depth, name or request's number, offset) of what is below a request."""
    return [
        (each["depth"],
         str(int(told["requests"][each["request"]]["span"], 16)) if "request" in each
         else each["name"], each["offset_ns"])
        for each in shown(told)[number]["below"]
    ]  # fmt: skip


def test_what_is_below_a_request(made: Any) -> None:
    """The application's spans, what it asked, and who answered; not those of other traces."""
    app = [
        span("app", 0xA1, recorded.BEGIN_UNIX_NS + 10, 50, parent=1),
        span("its call", 0xA2, recorded.BEGIN_UNIX_NS + 30, 20, parent=0xA1),
        span("early", 0xA3, recorded.BEGIN_UNIX_NS + 20, -4, parent=0xA1),
        span("stranger", 0xA4, recorded.BEGIN_UNIX_NS, 5, parent=0xB1),
        span("of another trace", 0xA5, recorded.BEGIN_UNIX_NS, 5, parent=1, trace=2),
    ]
    told = made(
        export(request(1), request(7, kind=CLIENT, trace=1, parent=0xA2, after_ns=35),
               request(8, trace=1, parent=7, after_ns=40),
               request(9, trace=2, parent=1, after_ns=45)),
        export(app, scope="lib", service="till"),
    )  # fmt: skip
    assert tree(told, 1) == [
        (1, "app", 10),
        (2, "early", 20),
        (2, "its call", 30),
        (3, "7", 35),
        (4, "8", 40),
    ]
    assert tree(told, 7) == [(1, "8", 5)]
    assert shown(told)[1]["below"][0] == {
        "depth": 1,
        "offset_ns": 10,
        "name": "app",
        "scope": "lib",
        "service": "till",
        "total_ns": 50,
    }
    assert shown(told)[7]["parent"] == f"{0xA2:016x}"
    # The application's own are in no distribution.
    assert sum(route["total"]["count"] for route in told["routes"]) == 4
    assert told["spans_read"] == 4 * 8 + 5


def test_what_is_below_is_shown_however_fast_it_was(
    made: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "SLOWEST", 1)
    calls = [
        request(n, kind=CLIENT, trace=1, parent=1, stages={"write_to_read": n}, after_ns=n)
        for n in (5, 6, 7)
    ]
    told = made(export(request(1), *calls))
    assert tree(told, 1) == [(1, "5", 5), (1, "6", 6), (1, "7", 7)]
    assert shown(told).keys() == {1, 5, 6, 7}


def test_room_for_what_is_below(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "BELOW", 3)
    monkeypatch.setattr(selection, "BELOW_ALL", 4)
    spans = [
        span(f"s{n}", 0x100 + n, recorded.BEGIN_UNIX_NS + n, 1, parent=1 + n % 2, trace=1 + n % 2)
        for n in range(10)
    ]
    told = made(export(request(1), request(2)), export(spans, scope="lib"))
    assert [len(shown(told)[n]["below"]) for n in (1, 2)] == [3, 1]
    assert told["below_left_out"] == 2 + 4


def test_circles_of_parents_end_and_what_came_twice_is_told_once(made: Any) -> None:
    spans = [
        span("a", 0xA, 1_000, 1, parent=0xB),
        span("b", 0xB, 1_000, 1, parent=0xA),
        span("c", 0xC, 1_000, 1, parent=1),
        span("own", 0xD, 1_000, 1, parent=0xD),
    ]
    told = made(export(request(1, parent=0xC)), export(spans, spans, scope="lib"))
    assert [name for _, name, _ in tree(told, 1)] == ["c"]


def test_resources_are_told_once(made: Any) -> None:
    told = made(export(request(1)), export(request(2), service="till"), export(request(3)))
    assert told["resources"] == [[("service.name", "shop")], [("service.name", "till")]]
    assert [shown(told)[n]["resource"] for n in (1, 2, 3)] == [0, 1, 0]

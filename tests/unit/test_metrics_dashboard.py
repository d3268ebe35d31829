# SPDX-License-Identifier: Apache-2.0
"""The dashboard's structure, and that it asks for metrics and labels that there are.

What it shows is asked of a real Prometheus in tests/e2e/test_metrics_panels.py.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from dashboard import Query, load, owned_by, queries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard
from promql import everything, labels_in, matched_in, metrics_in

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import Kind, stage_name
from otelbpf.ledger.stamps import Owner, owner_of
from otelbpf.metrics.stage_places import OTHER_STAGES
from otelbpf.top.look import COLOURS

DASHBOARD = load()
PANELS = DASHBOARD["panels"]
WITH_DATA = [panel for panel in PANELS if panel["type"] != "row"]
# What Grafana has of its own.
BUILT_IN = {"__rate_interval", "__range"}
_WIDTH = 24
# Panels that tell whose the time is.
WHOSE = {
    Kind.SERVER: "Whose the time is",
    Kind.CLIENT: "Whose the time of requests to upstreams is",
}


def title(panel: dict[str, Any]) -> str:
    name: str = panel["title"]
    return name


def left_out(said: Any, read: Any, path: str = "") -> Iterator[str]:
    """Where what was said is not in what was read."""
    if isinstance(said, dict):
        for name, value in said.items():
            yield from left_out(value, (read or {}).get(name), f"{path}/{name}")
    elif isinstance(said, list):
        for number, value in enumerate(said):
            known = read is not None and number < len(read)
            yield from left_out(value, read[number] if known else None, f"{path}/{number}")
    elif said != read and said not in (None, "", False):
        yield path


def test_grafanas_own_types_hold_all_that_it_says() -> None:
    """Generated from Grafana 11.6, which writes `definition` itself without a type for it."""
    register_default_plugins()
    read = json.loads(json.dumps(Dashboard.from_json(DASHBOARD), cls=JSONEncoder))
    unknown = list(left_out(DASHBOARD, read))
    assert [path for path in unknown if not path.endswith("/definition")] == []
    assert len(unknown) == 2


def test_what_grafana_needs_to_take_it() -> None:
    """Its uid stays, so that a newer version replaces it; its id is the server's to give."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["uid"] == "otelbpf-requests"
    assert DASHBOARD["schemaVersion"] == 39
    assert DASHBOARD["title"] and DASHBOARD["description"]
    assert DASHBOARD["time"] == {"from": "now-1h", "to": "now"}


def test_panels_have_ids_of_their_own_and_do_not_overlap() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        assert at["x"] >= 0 and at["w"] > 0 and at["h"] > 0
        assert at["x"] + at["w"] <= _WIDTH
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, title(panel)
        taken |= cells
    # Without holes, too.
    assert len(taken) == _WIDTH * (1 + max(y for _, y in taken))


@pytest.mark.parametrize("panel", WITH_DATA, ids=title)
def test_a_panel(panel: dict[str, Any]) -> None:
    assert panel["type"] in ("timeseries", "stat", "table")
    assert panel["description"]
    defaults, overrides = panel["fieldConfig"]["defaults"], panel["fieldConfig"]["overrides"]
    assert "unit" in defaults or overrides
    refs = [target["refId"] for target in panel["targets"]]
    assert refs == list("ABCDEFGHIJ"[: len(refs)])
    assert refs
    for each in (panel, *panel["targets"]):
        assert each["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert target["instant"] is (panel["type"] == "table") is not target["range"]
        assert target["expr"].count("(") == target["expr"].count(")")


def test_a_tables_columns_are_those_of_its_queries() -> None:
    (table,) = (panel for panel in PANELS if panel["type"] == "table")
    (organize,) = (t for t in table["transformations"] if t["id"] == "organize")
    names = organize["options"]["renameByName"]
    values = {f"Value #{target['refId']}" for target in table["targets"]}
    assert names.keys() == values | {"otelbpf_stage"}
    shown = {override["matcher"]["options"] for override in table["fieldConfig"]["overrides"]}
    assert shown == {name for column, name in names.items() if column in values}
    assert {each["displayName"] for each in table["options"]["sortBy"]} <= shown


@pytest.mark.parametrize("kind", Kind)
def test_whose_the_time_is_follows_from_the_table(kind: Kind) -> None:
    """A query for each owner, of its stages; together they are all there are of the kind."""
    (panel,) = (panel for panel in PANELS if panel["title"] == WHOSE[kind])
    assert [target["legendFormat"] for target in panel["targets"]] == [o.label for o in Owner]
    for owner, target in zip(Owner, panel["targets"], strict=True):
        part, whole = target["expr"].rsplit(" / ", 1)
        assert f'otelbpf_stage=~"{owned_by(owner, kind)}"' in part
        assert "otelbpf_stage" not in matched_in(whole)
        assert part.count(f'otelbpf_kind="{kind}"') == whole.count(f'otelbpf_kind="{kind}"') == 1
    colours = {
        override["matcher"]["options"]: override["properties"][0]["value"]["fixedColor"]
        for override in panel["fieldConfig"]["overrides"]
    }
    assert colours == {owner.label: colour for owner, colour in COLOURS.items()}


@pytest.mark.parametrize("kind", Kind)
def test_each_stage_is_one_owners(kind: Kind) -> None:
    """Those that no request can have, after its end, too."""
    begins = [stamp for stamp in Stamp if stamp < Stamp.ENDED]
    stages = [
        stage_name(first, second)
        for first in begins for second in (*begins, Stamp.ENDED) if first is not second
    ]  # fmt: skip
    for stage in (*stages, OTHER_STAGES):
        owners = [owner for owner in Owner if re.fullmatch(owned_by(owner, kind), stage)]
        assert owners == [owner_of(stage, kind)], stage


def test_what_waits_for_the_reader_is_the_tables() -> None:
    (query,) = (query for query in queries() if query.panel == "Waiting, p99 of each stage")
    assert f'otelbpf_stage=~"{owned_by(Owner.WAITING, Kind.SERVER)}"' in query.expression


def test_variables() -> None:
    """A data source, then the services it has, then the routes of those."""
    source, service, route = DASHBOARD["templating"]["list"]
    assert (source["type"], source["query"]) == ("datasource", "prometheus")
    assert (service["name"], route["name"]) == ("service", "route")
    for variable in (service, route):
        assert variable["multi"] and variable["includeAll"]
        # Not the list of all: what has no such label belongs to "All", too.
        assert variable["allValue"] == ".*"
        assert variable["query"]["query"] == variable["definition"]
    assert '{job=~"$service"}' in route["definition"]


@pytest.mark.parametrize("query", list(queries()), ids=str)
def test_it_asks_for_what_there_is(query: Query) -> None:
    """Metrics, labels and variables."""
    names, labels = everything()
    asked = metrics_in(query.expression)
    assert asked
    assert asked <= names
    assert labels_in(query.expression) <= labels
    variables = {name: "" for name in (*BUILT_IN, "service", "route")}
    assert "$" not in query.with_values(variables)

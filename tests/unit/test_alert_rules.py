# SPDX-License-Identifier: Apache-2.0
"""The alert rules: promtool's verdict, and that the metrics, labels and stages are there.

When which alert fires is in alerts.yaml, beside this file.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from dashboard import owned_by
from promql import everything, labels_in, metrics_in

from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import Owner
from otelbpf.ledger.tally import Lost

PATH = Path(__file__).resolve().parents[2] / "collector/alerts.yaml"
SCENARIOS = Path(__file__).with_name("alerts.yaml")
P99 = "owner:otelbpf_stage_duration_seconds:p99"
#: Nothing is wrong with otelbpf: the client went away, or otelbpf was told to stop.
NOBODYS_FAULT = {Lost.CLOSED, Lost.STOPPED, Lost.UNREAD}
_DEADLINE_S = 60


def rules() -> list[dict[str, Any]]:
    groups = yaml.safe_load(PATH.read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


RECORDED = [rule for rule in rules() if "record" in rule]
ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}


def promtool(*arguments: object) -> None:
    done = subprocess.run(
        ["promtool", *map(str, arguments)], capture_output=True, text=True, timeout=_DEADLINE_S
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.impure
def test_promtool_takes_them() -> None:
    promtool("check", "rules", PATH)


@pytest.mark.impure
def test_they_fire_when_they_should() -> None:
    promtool("test", "rules", SCENARIOS)


def test_each_has_been_seen_to_fire() -> None:
    scenarios = SCENARIOS.read_text()
    assert {name for name in ALERTS if f'alertname="{name}"' in scenarios} == set(ALERTS)


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert", "p99"))
def test_they_ask_for_what_there_is(rule: dict[str, Any]) -> None:
    names, labels = everything()
    assert metrics_in(rule["expr"]) or P99 in rule["expr"]
    assert metrics_in(rule["expr"]) <= names
    assert labels_in(rule["expr"]) <= labels | {"otelbpf_owner"}


def test_the_scenarios_are_of_what_there_is() -> None:
    names, labels = everything()
    for scenario in yaml.safe_load(SCENARIOS.read_text())["tests"]:
        for each in scenario["input_series"]:
            assert metrics_in(each["series"])
            assert metrics_in(each["series"]) <= names
            assert labels_in(each["series"]) <= labels


@pytest.mark.parametrize("kind", Kind)
def test_whose_the_time_is_follows_from_the_table(kind: Kind) -> None:
    """The stages of each owner but of nobody's."""
    of_kind = [rule for rule in RECORDED if rule["labels"]["otelbpf_kind"] == kind]
    owners = [owner for owner in Owner if owner is not Owner.UNKNOWN]
    assert [rule["labels"]["otelbpf_owner"] for rule in of_kind] == owners
    for owner, rule in zip(owners, of_kind, strict=True):
        assert rule["record"] == P99
        assert f'otelbpf_stage=~"{owned_by(owner, kind)}"' in rule["expr"]
        assert f'otelbpf_kind="{kind}"' in rule["expr"]


def test_each_owner_has_a_limit() -> None:
    limited: dict[str, list[str]] = {}
    for rule in ALERTS.values():
        for owner in re.findall(P99 + r'\{.*otelbpf_owner="(\w+)"', rule["expr"]):
            limited.setdefault(owner, []).append(rule["expr"])
    assert limited.keys() == set(Owner) - {Owner.UNKNOWN}
    assert all(len(of_owner) == 1 for owner, of_owner in limited.items() if owner != Owner.PEER)
    # A server's peers are its clients, who may be slow; an upstream may not.
    of_peers = [re.findall(r'otelbpf_kind="(\w+)"', expr) for expr in limited[Owner.PEER]]
    assert sorted(of_peers) == [[Kind.CLIENT], [Kind.SERVER]]


def test_each_loss_is_told_once_or_is_nobodys_fault() -> None:
    """One that is new is told, too."""
    (but,) = set(re.findall(r'otelbpf_reason!~"([^"]+)"', ALERTS["OtelbpfRequestsLost"]["expr"]))
    refused = ALERTS["OtelbpfExportRefused"]["expr"]
    (export,) = set(re.findall(r'otelbpf_reason=~"([^"]+)"', refused))
    told = {reason for reason in Lost if not re.fullmatch(but, reason)}
    at_export = {reason for reason in Lost if re.fullmatch(export, reason)}
    assert told.isdisjoint(at_export)
    assert told | at_export == set(Lost) - NOBODYS_FAULT
    assert at_export == {Lost.REJECTED, Lost.REFUSED, Lost.TOO_LARGE, Lost.EXPORT_FAILED}

# SPDX-License-Identifier: Apache-2.0
"""Known delays, injected at each place of a request's way: what noise cannot break of bench/truth.

How exact the stages are depends on the machine, and is in docs/accuracy.md. Here each delay is so
long that it must be told of the right stage and the right owner, with its order of magnitude, and
of no other, whatever else the machine does. Of times the median is taken, and one request may be
told elsewhere: the machine may have held it up for longer than the delay.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator

import pytest
from delays.experiment import delays, run
from delays.findings import Finding, find
from delays.scenarios import SCENARIOS, Scenario
from support.namespaces import network

COUNT = 5
LEAST_NS, MOST_NS = 60_000_000, 100_000_000
#: Beyond the order of magnitude: what a busy machine may add to anything.
SLACK_NS = 20_000_000


@pytest.fixture(scope="module", params=[True, False], ids=["XDP", "no XDP"])
def findings(request: pytest.FixtureRequest) -> Iterator[dict[str, Finding]]:
    """Of all scenarios, by name."""
    delays_ns = delays(COUNT, LEAST_NS, MOST_NS)
    with network() as net:
        trials = run(net, SCENARIOS, delays_ns, xdp=request.param)
        yield {each.scenario.name: find(each) for each in trials}


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_a_delay_is_told_where_it_was(findings: dict[str, Finding], scenario: Scenario) -> None:
    finding = findings[scenario.name]
    outcomes = finding.outcomes
    assert len(outcomes) == COUNT
    assert finding.right >= COUNT - 1, finding.wrong
    injected_ns = statistics.median(each.injected_ns for each in outcomes)
    measured_ns = statistics.median(each.measured_ns for each in outcomes)
    assert injected_ns / 2 < measured_ns < 2 * injected_ns + SLACK_NS, outcomes
    leak_ns = statistics.median(each.leak_ns for each in outcomes)
    assert leak_ns < injected_ns / 2, outcomes

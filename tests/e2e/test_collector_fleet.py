# SPDX-License-Identifier: Apache-2.0
"""A fleet on Kafka: two collectors sample traces, one of them is killed, and no trace suffers."""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from collector_stack import OTLP_GRPC_PORT, Collector, Jaeger, collector, jaeger, once
from demo.otlp import Kind, Span
from demo.receiver import Receiver
from gateway_traffic import (
    SERVICE,
    gateway_with_models,
    is_no_stage,
    measured_options,
    owed_spans,
    send,
)
from kafka_broker import PARTITIONS, kafka
from stack import agent
from support.namespaces import Network, Side
from support.waiting import DEADLINE_S, wait_until

pytestmark = pytest.mark.heavy

ENDPOINT = f"http://127.0.0.1:{OTLP_GRPC_PORT}"
COUNT = 115
# Every tenth request or so: the gateway's model is asked to take 40 ms.
SLOW_MS = 30
COMMIT_S = 2.0
SLOW_STAGE_NS = 10_000_000
# A session that ends, partitions that move, a replay, and the wait for the decision.
AFTER_KILL_S = 90.0


@contextlib.contextmanager
def fleet_collector(side: Side, directory: Path, broker: str, number: int) -> Iterator[Collector]:
    """One of those behind Kafka; keeps only what its policies ask for, none by chance."""
    environment = {
        "OTELBPF_KAFKA": broker,
        "OTELBPF_INSECURE": "true",
        "OTELBPF_SLOW_MS": str(SLOW_MS),
        "OTELBPF_KEEP_PERCENT": "0",
        "OTELBPF_HEALTH_PORT": f"{13200 + number}",
        "OTELBPF_METRICS_PORT": f"{8800 + number}",
    }
    with collector(
        side,
        directory,
        "fleet",
        environment=environment,
        health_port=13200 + number,
        metrics_port=8800 + number,
    ) as running:
        yield running


def total(running: Collector, name: str) -> float:
    return sum(value for _, value in running.metrics().get(f"otelcol_{name}", []))


def partitions(running: Collector) -> float:
    return total(running, "kafka_receiver_partition_start") - total(
        running, "kafka_receiver_partition_close"
    )


def read(running: Collector) -> float:
    return total(running, "receiver_accepted_spans")


def worth_keeping(spans: Iterable[Span]) -> dict[str, set[str]]:
    """What fleet.yaml's policies say in other words: trace id -> all its spans' ids."""
    groups: dict[str, list[Span]] = defaultdict(list)
    for span in spans:
        groups[span.trace_id].append(span)
    return {
        trace_id: {span.span_id for span in group}
        for trace_id, group in groups.items()
        if _is_slow(group) or any(map(_has_failed, group)) or any(map(_waited, group))
    }


def _is_slow(group: list[Span]) -> bool:
    took_ns = max(s.end_unix_ns for s in group) - min(s.start_unix_ns for s in group)
    return took_ns // 1_000_000 >= SLOW_MS


def _has_failed(span: Span) -> bool:
    # OpenTelemetry: of a server's, 5xx; of a client's, 4xx as well.
    status = span.attributes.get("http.response.status_code", 0)
    assert isinstance(status, int)
    return status >= (400 if span.kind is Kind.CLIENT else 500)


def _waited(span: Span) -> bool:
    first, _, second = span.name.partition("_to_")
    inward = ("nic", "tc", "tcp", "queued", "woken", "running", "read")
    waits = span.scope == "otelbpf" and first in inward[:-1] and second in inward[1:]
    return waits and span.end_unix_ns - span.start_unix_ns > SLOW_STAGE_NS


def kept(storage: Jaeger) -> dict[str, set[str]]:
    """What Jaeger has: trace id -> its spans' ids."""
    found: dict[str, set[str]] = defaultdict(set)
    for span in storage.spans(SERVICE):
        found[span.trace_id].add(span.span_id)
    return found


def test_a_killed_collector_costs_no_trace_and_no_part_of_one(net: Network, tmp_path: Path) -> None:
    """It is killed with spans that it has read and not decided on, and under load."""
    side = net.server
    with contextlib.ExitStack() as stack:
        start = stack.enter_context
        storage = start(jaeger(side, tmp_path))
        broker = start(kafka(side, tmp_path)).address
        # Beside Kafka everything goes to a witness, too.
        witness = start(side.call(Receiver))
        start(
            collector(
                side,
                tmp_path,
                "agent",
                "agent-kafka",
                environment={
                    "OTELBPF_KAFKA": broker,
                    "OTELBPF_QUEUE": str(tmp_path / "queue"),
                    "OTELBPF_NEXT": f"127.0.0.1:{witness.grpc_port}",
                    "OTELBPF_INSECURE": "true",
                },
                settings=["service.pipelines.traces.exporters=[kafka,otlp_grpc,span_metrics]"],
            )
        )
        start(gateway_with_models(net, tmp_path, ENDPOINT))
        otelbpf = start(
            agent(
                tmp_path,
                *measured_options(net),
                under=side.enter(),
                environment={"OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT},
            )
        )
        otelbpf.wait_ready()
        # The topic is made by the first that writes to it.
        first = send(net, tmp_path, 1)
        two = [start(fleet_collector(side, tmp_path, broker, number)) for number in (1, 2)]
        victim, survivor = two
        wait_until(
            lambda: all(partitions(each) == PARTITIONS / 2 for each in two),
            "each has half of the partitions",
            state=lambda: [partitions(each) for each in two],
        )

        owed = owed_spans(first) + owed_spans(send(net, tmp_path, COUNT))
        assert witness.wait_for(owed, DEADLINE_S, is_no_stage), "spans are missing"
        wait_until(
            lambda: sum(map(read, two)) >= len(witness.spans()),
            "both have read what was sent",
            state=lambda: [len(witness.spans()), *map(read, two)],
        )
        assert read(victim) > 0
        # Longer than the receiver's default is between two commits, by the victim's own clock.
        read_at = total(victim, "process_uptime")
        wait_until(
            lambda: total(victim, "process_uptime") > read_at + COMMIT_S, "it could have committed"
        )
        undecided = worth_keeping(witness.spans()).keys() - kept(storage).keys()
        assert undecided, "all was decided on before the kill, which then proves nothing"
        victim.kill()
        send(net, tmp_path, COUNT)
        ended = otelbpf.stop()
        wait_until(
            lambda: partitions(survivor) == PARTITIONS,
            "the other one has all the partitions",
            state=lambda: partitions(survivor),
        )

        def expected() -> dict[str, set[str]]:
            return worth_keeping(once(witness.spans()))

        wait_until(
            lambda: kept(storage) == expected(),
            "every trace worth keeping is there, whole",
            state=lambda: missing(expected(), kept(storage)),
            deadline_s=AFTER_KILL_S,
        )
    ended.assert_adds_up()
    assert ended.sums is not None and ended.sums["lost"] == {}
    # Some that are slow, some that failed, and not simply all.
    everything = {span.trace_id for span in witness.spans()}
    assert 10 < len(expected()) < len(everything)


def missing(expected: dict[str, set[str]], found: dict[str, set[str]]) -> str:
    absent = expected.keys() - found.keys()
    extra = found.keys() - expected.keys()
    parts = [each for each in expected.keys() & found.keys() if expected[each] != found[each]]
    return (
        f": of {len(expected)} traces {len(absent)} are absent and {len(parts)} not as they were "
        f"sent; {len(extra)} others came"
    )

# SPDX-License-Identifier: Apache-2.0
"""Collectors that are killed: what was to be kept is kept, and the rest is counted."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from collector_stack import OTLP_GRPC_PORT, Collector, Jaeger, collector, jaeger
from demo.otlp import Span
from servers import Server
from stack import COUNT, Agent, Measured, agent, measured
from support.namespaces import Network
from support.waiting import wait_until

pytestmark = pytest.mark.heavy

SERVICE = "killed"
ENDPOINT = f"http://127.0.0.1:{OTLP_GRPC_PORT}"
# The server reads on 50 ms after it has answered: a client needs 20 s for 400 of these.
WAITING = "/wait/50"
WAITING_FOR_20_S = 400
# otelbpf's queue: more than these, and less than are sent later, even where a batch of all that it
# holds has just been taken from it.
QUEUE = 1000
TOO_MANY = 3000
# The agent's back-off, and gRPC's before it connects again.
COMES_BACK_S = 60.0


def agent_collector(
    net: Network, directory: Path, *settings: str
) -> contextlib.AbstractContextManager[Collector]:
    """The one of agent.yaml; it sends to Jaeger."""
    environment = {"OTELBPF_QUEUE": str(directory / "queue"), "OTELBPF_INSECURE": "true"}
    return collector(net.server, directory, "agent", environment=environment, settings=settings)


def otelbpf(
    net: Network, server: Server, directory: Path, **variables: str
) -> contextlib.AbstractContextManager[Agent]:
    return agent(
        directory,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--service-name",
        SERVICE,
        under=net.server.enter(),
        environment={
            "OTEL_EXPORTER_OTLP_ENDPOINT": ENDPOINT,
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
            **variables,
        },
    )


class Load:
    """One client that asks all the time, in a thread."""

    def __init__(self, net: Network, port: int) -> None:
        self._net, self._port = net, port
        self._end = threading.Event()
        self.sent = 0

    def _ask(self) -> None:
        with Client.of(self._net, self._port) as client:
            while not self._end.is_set():
                client.ask(WAITING)
                self.sent += 1

    def wait_for(self, more: int) -> None:
        enough = self.sent + more
        wait_until(lambda: self.sent >= enough, f"{more} more requests are answered")

    @contextlib.contextmanager
    def under_way(self) -> Iterator[Load]:
        thread = threading.Thread(target=self._ask)
        thread.start()
        try:
            yield self
        finally:
            self._end.set()
            thread.join()


def ask(net: Network, port: int, count: int) -> None:
    with Client.of(net, port) as client:
        for number in range(count):
            client.ask(f"/{number}")


def length_ns(span: Span) -> int:
    return span.end_unix_ns - span.start_unix_ns


def assert_jaeger_has(storage: Jaeger, count: int) -> None:
    """That many requests, each with all its stages."""

    def whole(spans: list[Span]) -> list[Measured]:
        """Of those that are there. Jaeger shows a request while its stages are yet to come."""
        roots = {span.span_id for span in spans if not span.parent_span_id}
        known = measured(s for s in spans if s.span_id in roots or s.parent_span_id in roots)
        return [each for each in known if sum(map(length_ns, each.stages)) == length_ns(each.span)]

    spans = storage.wait_for(
        SERVICE,
        lambda found: len(whole(found)) >= count,
        f"{count} requests are there",
        COMES_BACK_S,
    )
    requests = measured(spans)
    assert len(requests) == count
    for request in requests:
        request.assert_tiled()


def test_a_collector_that_is_away_for_20_s_costs_only_what_the_queue_cannot_hold(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """It is killed under load, twice: all the load comes first, then more than otelbpf queues."""
    load = Load(net, server.port)
    with (
        jaeger(net.server, tmp_path) as storage,
        otelbpf(
            net,
            server,
            tmp_path,
            OTEL_BSP_MAX_QUEUE_SIZE=str(QUEUE),
            OTEL_BSP_EXPORT_TIMEOUT="60000",
        ) as running,
    ):
        running.wait_ready()
        with load.under_way():
            with agent_collector(net, tmp_path) as first:
                load.wait_for(COUNT)
                first.kill()
            load.wait_for(WAITING_FOR_20_S)
        with agent_collector(net, tmp_path) as second:
            assert_jaeger_has(storage, load.sent)
            second.kill()
        ask(net, server.port, TOO_MANY)
        # What the queue would soon have had room for has waited in the kernel's ring until now.
        wait_until(lambda: "the queue of 1000 is full" in running.stderr, "requests are lost")
        with agent_collector(net, tmp_path):
            ended = running.stop()
            assert ended.sums is not None, ended.stderr
            assert_jaeger_has(storage, ended.sums["exported"])
    ended.assert_adds_up()
    assert ended.sums["seen"] == load.sent + TOO_MANY
    assert ended.sums["lost"].keys() == {"queue_full"}
    # What fits: the queue, and the batch that was taken from it.
    assert 0 < ended.sums["lost"]["queue_full"] <= TOO_MANY - QUEUE


def test_what_the_collector_took_outlives_it_on_disk(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Its downstream is away, it is killed, and both come back."""
    with agent_collector(net, tmp_path) as first:
        with otelbpf(net, server, tmp_path) as running:
            running.wait_ready()
            ask(net, server.port, 10 * COUNT)
            running.stop().assert_clean(seen=10 * COUNT)
        first.kill()
    with jaeger(net.server, tmp_path) as storage, agent_collector(net, tmp_path):
        assert_jaeger_has(storage, 10 * COUNT)


def test_a_full_queue_refuses_and_otelbpf_counts(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """What it refused is lost, and counted; what it took arrives."""
    # A request is some 11 spans of 200 to 900 bytes. The queue takes a batch whole or not at all.
    settings = f"exporters.otlp_grpc.sending_queue.queue_size={20 * COUNT * 1000}"
    variables = {
        "OTEL_BSP_EXPORT_TIMEOUT": "3000",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": str(11 * COUNT),
    }
    with agent_collector(net, tmp_path, settings) as first:
        with otelbpf(net, server, tmp_path, **variables) as running:
            running.wait_ready()
            ask(net, server.port, TOO_MANY)
            ended = running.stop()
        first.kill()
    ended.assert_adds_up()
    assert ended.sums is not None
    assert ended.sums["seen"] == TOO_MANY
    assert 0 < ended.sums["exported"] < TOO_MANY
    assert ended.sums["lost"] == {"export_failed": TOO_MANY - ended.sums["exported"]}
    with jaeger(net.server, tmp_path) as storage, agent_collector(net, tmp_path, settings):
        assert_jaeger_has(storage, ended.sums["exported"])

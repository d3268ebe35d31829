# SPDX-License-Identifier: Apache-2.0
"""The trace that a request belongs to, and the samplers. One agent for each test."""

from __future__ import annotations

from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, nginx
from stack import COUNT, agent, measured, to, wait_for_requests
from support.namespaces import Network

TRACE = "4bf92f3577b34da6a3ce929d0e0e{:04x}"
PARENT = "00f067aa0ba9{:04x}"


def traceparent(number: int, flags: str = "01", version: str = "00") -> str:
    return f"{version}-{TRACE.format(number)}-{PARENT.format(number)}-{flags}"


def options(net: Network) -> tuple[str, ...]:
    return ("--interface", net.server.interface, "--port", "8080", "--netns", net.server.netns)


def test_a_span_joins_its_callers_trace_or_starts_one(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """In one run: those with a parent, those without, those whose parent did not sample."""
    with agent(tmp_path, *options(net), environment=to(receiver)) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for number in range(COUNT):
                client.ask(f"/child/{number}", headers={"traceparent": traceparent(number)})
                client.ask(f"/root/{number}")
                client.ask(
                    f"/not-sampled/{number}", headers={"traceparent": traceparent(number, "00")}
                )
        requests = wait_for_requests(receiver, 2 * COUNT)
        running.stop().assert_clean(seen=3 * COUNT, sampled_out=COUNT)

    assert len(requests) == 2 * COUNT
    by_path = {request["url.path"]: request.span for request in requests}
    for number in range(COUNT):
        child = by_path[f"/child/{number}"]
        assert child.trace_id == TRACE.format(number)
        assert child.parent_span_id == PARENT.format(number)
        root = by_path[f"/root/{number}"]
        assert root.parent_span_id == ""
    roots = {by_path[f"/root/{number}"].trace_id for number in range(COUNT)}
    assert len(roots) == COUNT
    assert "0" * 32 not in roots
    for request in requests:
        assert {stage.trace_id for stage in request.stages} == {request.span.trace_id}
    ids = [span.span_id for span in receiver.spans()]
    assert len(set(ids)) == len(ids)


def test_a_repeated_traceparent_gives_as_many_children(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """As retries and load generators do, on one connection and on several."""
    with agent(tmp_path, *options(net), environment=to(receiver)) as running:
        running.wait_ready()
        with Client.of(net, server.port) as first, Client.of(net, server.port) as second:
            for client in (first, first, second):
                client.ask(headers={"Traceparent": traceparent(7)})
        requests = wait_for_requests(receiver, 3)
        running.stop().assert_clean(seen=3)
    assert {request.span.trace_id for request in requests} == {TRACE.format(7)}
    assert {request.span.parent_span_id for request in requests} == {PARENT.format(7)}
    assert len({request.span.span_id for request in requests}) == 3


def test_a_traceparent_that_is_none_starts_a_trace(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    wrong = (
        "",
        "00",
        traceparent(1)[:-1],
        traceparent(1) + "-more",
        traceparent(1).upper(),
        traceparent(1, version="ff"),
        traceparent(1).replace("-", "_"),
        f"00-{'0' * 32}-{PARENT.format(1)}-01",
        f"00-{TRACE.format(1)}-{'0' * 16}-01",
    )
    right = (traceparent(1), traceparent(1, version="cc") + "-later", traceparent(1, "03"))
    with agent(tmp_path, *options(net), environment=to(receiver)) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for header in (*wrong, *right):
                client.ask(headers={"traceparent": header})
        requests = wait_for_requests(receiver, len(wrong) + len(right))
        running.stop().assert_clean(seen=len(wrong) + len(right))
    for request, header in zip(requests, (*wrong, *right), strict=True):
        joined = request.span.trace_id == TRACE.format(1)
        assert joined == (header in right), header
        assert request.span.parent_span_id == (PARENT.format(1) if joined else ""), header


def test_a_proxy_and_what_is_behind_it_are_both_children_of_the_caller(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """nginx hands the header on as it came. Two ports and two interfaces measured at once."""
    with (
        nginx(net, tmp_path, 8081, upstream=server.port),
        agent(
            tmp_path, *options(net), "--port", 8081, "--interface", "lo", environment=to(receiver)
        ) as running,
    ):
        running.wait_ready()
        with Client.of(net, 8081) as client:
            for number in range(COUNT):
                client.ask(f"/{number}", headers={"traceparent": traceparent(number)})
        requests = wait_for_requests(receiver, 2 * COUNT)
        running.stop().assert_clean(seen=2 * COUNT)
    for number in range(COUNT):
        behind, front = sorted(
            (each for each in requests if each["url.path"] == f"/{number}"),
            key=lambda each: each["network.local.port"],
        )
        assert (behind["network.local.port"], front["network.local.port"]) == (server.port, 8081)
        assert behind.span.parent_span_id == front.span.parent_span_id == PARENT.format(number)
        assert (behind["network.peer.address"], front["network.peer.address"]) == (
            "127.0.0.1",
            net.client.ipv4,
        )
        # Whose clock is one: nginx waits for the other inside its own read_to_write.
        assert front.stamp_unix_ns("read") < behind.stamp_unix_ns("nic")
        assert behind.stamp_unix_ns("tc_out") < front.stamp_unix_ns("write")
        for request in (front, behind):
            request.assert_tiled()
            request.assert_complete()


@pytest.mark.parametrize(
    ("sampler", "kept"),
    [
        ("always_on", {"": 23, "01": 23, "00": 23}),
        ("parentbased_traceidratio", {"": None, "01": 23, "00": 0}),
    ],
)
def test_samplers(
    net: Network,
    server: Server,
    receiver: Receiver,
    tmp_path: Path,
    sampler: str,
    kept: dict[str, int | None],
) -> None:
    """What each keeps of 23 requests with no parent, a sampled one, and one that is not."""
    environment = {**to(receiver), "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": "0.5"}
    with agent(tmp_path, *options(net), environment=environment) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for number in range(COUNT):
                for flags in kept:
                    header = {"traceparent": traceparent(number, flags)} if flags else {}
                    client.ask(f"/with{flags}", headers=header)
        ended = running.stop()
    paths = [request["url.path"] for request in measured(receiver.spans())]
    of_ratio = paths.count("/with") if kept[""] is None else kept[""]
    # Of 23, one in two: all or none would be one run in 4 million.
    assert kept[""] is not None or 0 < of_ratio < COUNT
    expected = {**kept, "": of_ratio}
    assert {flags: paths.count(f"/with{flags}") for flags in kept} == expected
    ended.assert_clean(seen=3 * COUNT, sampled_out=3 * COUNT - sum(expected.values()))

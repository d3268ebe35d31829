# SPDX-License-Identifier: Apache-2.0
"""Collectors that are late, absent, slow or silent; and the agent's own exports."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import grpc
import pytest
from client import Client
from collectors import grpc_collector, silent_collector
from demo.receiver import Behaviour, Receiver
from servers import Server
from stack import COUNT, Agent, agent, measured, otelbpf, to, wait_for_requests
from support.misbehaving import (
    PROTOBUF,
    Certificate,
    Rpc,
    Web,
    grpc_receiver,
    http_receiver,
    partial,
)
from support.namespaces import Network
from support.ports import unused_port
from support.waiting import wait_until

COMPLAINT = "the collector does not take spans now ("


def options(net: Network, server: Server) -> tuple[str | int, ...]:
    return ("--interface", net.server.interface, "--port", server.port, "--netns", net.server.netns)


def ask(net: Network, port: int, count: int = COUNT) -> None:
    with Client.of(net, port) as client:
        for number in range(count):
            client.ask(f"/{number}")


def wait_for_complaint(running: Agent) -> None:
    wait_until(lambda: COMPLAINT in running.stderr, "it complains", state=lambda: running.stderr)


def test_a_collector_that_comes_later_gets_everything(
    net: Network, server: Server, tmp_path: Path
) -> None:
    port = unused_port()
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
    }
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_for_complaint(running)
        with grpc_collector(port) as received:
            # 1 + 10 stages at most, of each of the 23.
            wait_until(
                lambda: len(measured(list(received.spans))) == COUNT,
                "all spans came",
                state=lambda: running.stderr,
            )
            running.stop().assert_clean(seen=COUNT)
    assert len(measured(received.spans)) == COUNT
    assert "the collector takes spans again" in running.stderr


def test_one_that_refuses_for_a_while_gets_everything_once(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.behave(Behaviour(refuse=True))
    environment = {**to(receiver), "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_for_complaint(running)
        receiver.behave(Behaviour())
        assert len(wait_for_requests(receiver, COUNT)) == COUNT
        running.stop().assert_clean(seen=COUNT)
    assert receiver.refused > 0


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_without_a_collector_all_are_counted_as_lost_and_it_ends_in_time(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    """OTEL_BSP_EXPORT_TIMEOUT is how long stopping waits for the collector."""
    flush_s = 1.5
    environment = {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_EXPORT_TIMEOUT": f"{flush_s * 1000:.0f}",
        "OTEL_BSP_MAX_QUEUE_SIZE": "7",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "22",
    }
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_for_complaint(running)
        began = time.monotonic()
        ended = running.stop()
        took_s = time.monotonic() - began
    assert ended.code == 0, ended.stderr
    ended.assert_adds_up()
    assert ended.sums["seen"] == COUNT
    assert ended.sums["exported"] == 0
    lost = ended.sums["lost"]
    assert lost.keys() == {"queue_full", "export_failed"}, lost
    # What left the queue before it filled up, and the queue; the rest found it full.
    assert lost["queue_full"] + lost["export_failed"] == COUNT
    assert 7 <= lost["export_failed"] <= 7 + 2 * 7
    assert "Traceback" not in ended.stderr
    # Above flush_s by what a busy machine may add.
    assert took_s < flush_s + 5.0


def test_a_full_queue_is_not_offered_again_after_the_time_is_up(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Each batch would cost its spans, and a line on standard error."""
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_port()}",
        "OTEL_EXPORTER_OTLP_TIMEOUT": "1",
        "OTEL_BSP_EXPORT_TIMEOUT": "200",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "11",  # one request
    }
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port, 10 * COUNT)
        ended = running.stop()
    ended.assert_adds_up()
    assert ended.sums["lost"] == {"export_failed": 10 * COUNT}
    assert "already shutdown" not in ended.stderr
    assert len(ended.stderr.splitlines()) < COUNT, ended.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_a_collector_that_never_answers_does_not_hold_the_agent(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    """Its connections open; an export then waits for OTEL_EXPORTER_OTLP_TIMEOUT."""
    with silent_collector() as port:
        environment = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
            "OTEL_EXPORTER_OTLP_TIMEOUT": "2",
            "OTEL_BSP_EXPORT_TIMEOUT": "500",
        }
        with agent(tmp_path, *options(net, server), environment=environment) as running:
            running.wait_ready()
            ask(net, server.port)
            began = time.monotonic()
            ended = running.stop()
            took_s = time.monotonic() - began
    ended.assert_adds_up()
    assert ended.code == 0
    assert (ended.sums["seen"], ended.sums["exported"]) == (COUNT, 0)
    assert ended.sums["lost"] == {"export_failed": COUNT}
    assert took_s < 0.5 + 2.0 + 5.0


def test_a_slow_collector_costs_spans_and_no_request(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """A queue of 5 in front of an export of one request that takes 200 ms."""
    receiver.behave(Behaviour(delay_s=0.2))
    environment = {
        **to(receiver),
        "OTEL_BSP_MAX_QUEUE_SIZE": "5",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "11",
        "OTEL_BSP_EXPORT_TIMEOUT": "20000",
    }
    count = 10 * COUNT
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        began = time.monotonic()
        ask(net, server.port, count)
        took_s = time.monotonic() - began
        ended = running.stop()
    # Requests that waited for their exports would have taken 46 s.
    assert took_s < count * 0.2 / 2
    assert ended.code == 0
    ended.assert_adds_up()
    exported = len(measured(receiver.spans()))
    assert 5 <= exported < count
    assert ended.sums["seen"] == count
    assert ended.sums["exported"] == exported
    assert ended.sums["lost"] == {"queue_full": count - exported}


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_own_exports_are_not_measured(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    """All in one namespace, and the collector's port is a measured one."""
    with net.server.call(Receiver) as receiver:
        port = receiver.grpc_port if protocol == "grpc" else receiver.http_port
        environment = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        }
        with agent(
            tmp_path,
            "--interface",
            "lo",
            "--port",
            server.port,
            "--port",
            port,
            environment=environment,
            under=net.server.enter(),
        ) as running:
            running.wait_ready()
            with Client.local(net, server.port) as client:
                for number in range(COUNT):
                    client.ask(f"/{number}")
                    # Each of them an export of its own.
                    wait_for_requests(receiver, number + 1)
            expected = {server.port: COUNT}
            if protocol == "http/protobuf":
                # The same port, but not from the agent.
                with Client.local(net, port) as client:
                    client.ask("/v1/traces")
                expected[port] = 1
                wait_for_requests(receiver, COUNT + 1)
            ended = running.stop()
    assert Counter(each["network.local.port"] for each in measured(receiver.spans())) == expected
    ended.assert_clean(seen=sum(expected.values()))
    assert ended.sums["connections"]["own"] >= 1, ended.sums


def to_port(protocol: str, port: int, scheme: str = "http") -> dict[str, str]:
    return {
        "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"{scheme}://localhost:{port}",
    }


@pytest.mark.parametrize(
    ("protocol", "answer", "words"),
    [
        (
            "http/protobuf",
            Web(302, {"Location": "https://login.example/"}),
            "HTTP 302 Found: to https://login.example/",
        ),
        ("http/protobuf", Web(401, {}, b"no such token"), "HTTP 401 Unauthorized: no such token"),
        (
            "grpc",
            Rpc(grpc.StatusCode.UNAUTHENTICATED, "no such token"),
            "gRPC UNAUTHENTICATED: no such token",
        ),
    ],
    ids=["302", "401", "UNAUTHENTICATED"],
)
def test_what_is_refused_for_good_is_lost_at_once_and_told_once(
    net: Network, server: Server, tmp_path: Path, protocol: str, answer: Web | Rpc, words: str
) -> None:
    """Spans and metrics: each post is one batch, and none is made twice."""
    with (grpc_receiver if protocol == "grpc" else http_receiver)() as receiver:
        receiver.otherwise = answer
        environment = {
            **to_port(protocol, receiver.port),
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
            "OTEL_BSP_MAX_QUEUE_SIZE": "1000",
        }
        with agent(tmp_path, *options(net, server), environment=environment) as running:
            running.wait_ready()
            ask(net, server.port)
            wait_until(
                lambda: receiver.tries == COUNT, "each was posted", state=lambda: running.stderr
            )
            ended = running.stop()
    assert receiver.tries == COUNT
    ended.assert_clean(seen=COUNT, lost={"refused": COUNT})
    assert ended.stderr.count("the collector") == 1
    assert f"the collector refuses spans ({words}); " in ended.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_what_is_rejected_in_part_is_counted(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    """One span of the first request, which then is not whole; the others are."""
    with (grpc_receiver if protocol == "grpc" else http_receiver)() as receiver:
        body = partial(1, "too old")
        receiver.answers = [Rpc(body=body) if protocol == "grpc" else Web(200, PROTOBUF, body)]
        environment = {**to_port(protocol, receiver.port), "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1"}
        with agent(tmp_path, *options(net, server), environment=environment) as running:
            running.wait_ready()
            ask(net, server.port)
            ended = running.stop()
    ended.assert_clean(seen=COUNT, lost={"rejected": 1})
    assert "the collector has rejected 1 of " in ended.stderr
    assert ", which are lost (too old)" in ended.stderr


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("bundle", ["", "REQUESTS_CA_BUNDLE"])
def test_a_collector_that_is_not_trusted(
    net: Network, server: Server, tmp_path: Path, protocol: str, bundle: str
) -> None:
    """The reason is told, once, and nothing else: gRPC has words of its own for each try."""
    made, other = (Certificate.make(tmp_path, name) for name in ("localhost", "else.example"))
    with (grpc_receiver if protocol == "grpc" else http_receiver)(made) as receiver:
        environment = {
            **to_port(protocol, receiver.port, "https"),
            "OTEL_EXPORTER_OTLP_CERTIFICATE": str(other.certificate),
            "OTEL_BSP_EXPORT_TIMEOUT": "1100",
            "REQUESTS_CA_BUNDLE": "",
            "CURL_CA_BUNDLE": "",
        }
        if bundle:
            environment[bundle] = str(made.certificate)
        with agent(tmp_path, *options(net, server), environment=environment) as running:
            running.wait_ready()
            ask(net, server.port)
            wait_for_complaint(running)
            ended = running.stop()
    assert receiver.tries == 0
    ended.assert_clean(seen=COUNT, lost={"export_failed": COUNT})
    about = [line for line in ended.stderr.splitlines() if "CERTIFICATE_VERIFY_FAILED" in line]
    assert len(about) == 1, ended.stderr
    assert about[0].startswith(f"otelbpf: {COMPLAINT}")
    assert all(line.startswith("otelbpf: ") for line in ended.stderr.splitlines()), ended.stderr


def test_variables_that_cannot_be_used_are_named(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Before anything is attached."""
    for variable, value in (
        ("OTEL_TRACES_EXPORTER", "otlp,console"),
        ("OTEL_TRACES_EXPORTER", "jaeger"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "-1"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
    ):
        ended = otelbpf(tmp_path, "run", *options(net, server), environment={variable: value})
        ended.assert_refused(variable, value)
    for variable in ("OTEL_EXPORTER_OTLP_CERTIFICATE", "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY"):
        environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://localhost:9", variable: "/none"}
        ended = otelbpf(tmp_path, "run", *options(net, server), environment=environment)
        ended.assert_refused(variable, "/none", "No such file")

# SPDX-License-Identifier: Apache-2.0
"""How long a request is said to have lasted: spans, metrics, --slow, and the client's clock."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, python_server
from stack import Measured, agent, to, wait_for_requests
from support.namespaces import Network
from test_metrics_run import told

COUNT = 6
LATE_S = 1.2
#: What reading, waking and the like may take on a machine that does much else.
SLACK_S = 0.6


@pytest.fixture(scope="module")
def server(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with python_server(net, tmp_path_factory.mktemp("server"), "patient_server", 8080) as running:
        yield running


def options(net: Network, server: Server, *more: str) -> tuple[str | int, ...]:
    return (
        "--netns", net.server.netns, "--interface", net.server.interface, "--port", server.port,
        *more,
    )  # fmt: skip


def length_s(request: Measured) -> float:
    return (request.span.end_unix_ns - request.span.start_unix_ns) / 1e9


def silent(net: Network, server: Server, target: str, count: int) -> list[socket.socket]:
    """So many connections that have each asked for this."""
    connections = [net.client.connect(net.server.ipv4, server.port) for _ in range(count)]
    for connection in connections:
        connection.sendall(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % target.encode())
    return connections


@pytest.mark.parametrize("who", ["client", "server"])
def test_requests_that_time_out_are_the_longest_of_all(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, who: str
) -> None:
    """Their ends' own is the time that they took, and the metric has it, and --slow keeps them."""
    environment = {
        **to(receiver), "OTEL_METRICS_EXPORTER": "otlp", "OTEL_TRACES_SAMPLER": "always_off",
    }  # fmt: skip
    with agent(
        tmp_path, *options(net, server, "--slow", f"{LATE_S:.1f}s"), environment=environment
    ) as running:
        running.wait_ready()
        target = f"/close/{LATE_S}" if who == "server" else "/answer/30"
        connections = silent(net, server, target, COUNT)
        begin_s = time.monotonic()
        if who == "client":
            time.sleep(LATE_S)
        for connection in connections:
            if who == "server":
                assert connection.recv(1) == b""
            else:
                # A FIN alone may be that of a client which still listens; with a RST it is over.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
        took_s = time.monotonic() - begin_s
        requests = wait_for_requests(receiver, COUNT)
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    told_as = {"client": "client_reset", "server": "server_closed"}[who]
    for request in requests:
        request.assert_tiled()
        assert LATE_S <= length_s(request) < took_s + SLACK_S
        assert request.stage_ns("read_to_ended") >= 1e9
        assert request["error.type"] == told_as
    ((attributes, point),) = told(receiver, "http.server.request.duration")
    assert attributes["error.type"] == told_as
    assert point.count == COUNT
    assert point.sum == pytest.approx(sum(map(length_s, requests)), rel=1e-9)


def test_an_answer_that_comes_after_the_idle_timeout_is_one_request(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """As a long poll's, or a slow model's: its socket is open all the while."""
    with agent(
        tmp_path, *options(net, server, "--idle-timeout", "0.3"), environment=to(receiver)
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            client.ask("/answer/3.5")
        (request,) = wait_for_requests(receiver, 1)
        running.stop().assert_clean(seen=1)
    assert request["http.response.status_code"] == 200
    assert 3.5 <= length_s(request) < 3.5 + SLACK_S
    assert request.stage_ns("read_to_write") >= 3.5e9
    request.assert_complete()


def test_a_clients_delayed_acknowledgement_is_not_the_servers_time(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """It is told apart, and makes nothing slow."""
    environment = {**to(receiver), "OTEL_METRICS_EXPORTER": "otlp"}
    late_ns = 20_000_000
    with agent(tmp_path, *options(net, server), environment=environment) as running:
        running.wait_ready()
        with net.client.connect(net.server.ipv4, server.port) as connection:
            for _ in range(COUNT * 5):
                # Where TCP thinks that an answer will go with it, the acknowledgement waits.
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 0)
                connection.sendall(b"GET /answer/0 HTTP/1.1\r\nHost: x\r\n\r\n")
                assert connection.recv(1 << 16).endswith(b"hello")
                time.sleep(0.03)
        requests = wait_for_requests(receiver, COUNT * 5)
        running.stop().assert_clean(seen=COUNT * 5)
    delayed = [each for each in requests if each["otelbpf.tcp.ack.duration_ns"] > late_ns]
    assert len(delayed) > COUNT  # else nothing was tried
    for request in requests:
        request.assert_tiled()
        assert not any("acked" in name for name in request.stage_names)
    # The application's own time apart, which a busy machine may stretch, they took no time at all.
    by_server = [length_s(each) - each.stage_ns("read_to_write") / 1e9 for each in delayed]
    assert sorted(by_server)[len(by_server) // 2] < late_ns / 1e9
    ((_, duration),) = told(receiver, "http.server.request.duration")
    ((_, acked),) = told(receiver, "otelbpf.tcp.ack.duration")
    assert duration.sum == pytest.approx(sum(map(length_s, requests)), rel=1e-9)
    acked_ns = sum(each["otelbpf.tcp.ack.duration_ns"] for each in requests)
    assert acked.count == len(requests)
    assert acked.sum == pytest.approx(acked_ns / 1e9, rel=1e-9)

# SPDX-License-Identifier: Apache-2.0
"""Gateways that are not ours: what they ask of upstreams, and for which request of their own."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from pathlib import Path

from client import Client, Exchange
from demo.otlp import Kind
from demo.receiver import Receiver
from servers import nginx, python_server
from stack import COUNT, Ended, Measured, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import DEADLINE_S

PORT = 8080
BEHIND = 9090
CLIENTS, EACH = 8, 25
TRACE = "4bf92f3577b34da6a3ce929d0e0e{:04x}"
PARENT = "00f067aa0ba9{:04x}"


def traceparent(number: int, flags: str = "01") -> str:
    return f"00-{TRACE.format(number)}-{PARENT.format(number)}-{flags}"


def options(net: Network) -> tuple[str | int, ...]:
    return (
        "--netns", net.server.netns, "--interface", net.server.interface, "--interface", "lo",
        "--port", PORT, "--upstream", f"127.0.0.1:{BEHIND}",
    )  # fmt: skip


def split(requests: list[Measured]) -> tuple[dict[str, Measured], dict[str, Measured]]:
    """(what the gateway was asked, what it asked), each by path."""
    asked = {each["url.path"]: each for each in requests if each.span.kind is Kind.SERVER}
    called = {
        each["url.full"].partition("//")[2].partition("/")[1] + each["url.full"].split("/", 3)[3]:
        each for each in requests if each.span.kind is Kind.CLIENT
    }  # fmt: skip
    assert len(asked) + len(called) == len(requests)
    return asked, called


def all_at_once(net: Network, ask: Callable[[Client, int], Exchange]) -> None:
    """CLIENTS connections with EACH requests on each, with a number for each request."""
    errors: list[BaseException] = []

    def one(first: int) -> None:
        try:
            with Client.of(net, PORT) as client:
                for number in range(first, first + EACH):
                    assert ask(client, number).body == f"/{number}\n".encode()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(EACH * each,)) for each in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def assert_told(called: Measured, host: str, path: str, service: str) -> None:
    """The conventions' HTTP client span, and its stages."""
    assert called.span.name == "GET /{id}"
    assert called["url.template"] == "/{id}"
    assert {
        name: called[name]
        for name in (
            "http.request.method",
            "http.response.status_code",
            "url.full",
            "url.path",
            "server.port",
            "network.peer.address",
            "network.peer.port",
            "client.address",
            "network.protocol.version",
            "error.type",
            "http.response.body.size",
        )
    } == {
        "http.request.method": "GET",
        "http.response.status_code": 200,
        "url.full": f"http://{host}{path}",
        "url.path": None,
        "server.port": int(host.rpartition(":")[2]),
        "network.peer.address": "127.0.0.1",
        "network.peer.port": BEHIND,
        "client.address": None,
        "network.protocol.version": "1.1",
        "error.type": None,
        "http.response.body.size": len(path) + 1,
    }
    assert called.span.resource["service.name"] == service
    called.assert_tiled()
    called.assert_complete()


def assert_ambiguous(ended: Ended, count: int) -> None:
    assert ended.sums is not None
    assert ended.sums["joins"]["causes_ambiguous"] == count


def test_a_thread_for_each_request_gives_each_call_its_parent(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """Two hundred interleaved requests: a third of them with a trace, a third without."""
    header = {
        0: lambda n: {},
        1: lambda n: {"traceparent": traceparent(n)},
        2: lambda n: {"X-Trace": traceparent(n)},
    }
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        python_server(net, tmp_path, "threading_gateway", PORT, str(BEHIND)) as gateway,
        agent(tmp_path, *options(net), environment=to(receiver)) as running,
    ):
        running.wait_ready()
        all_at_once(net, lambda client, n: client.ask(f"/{n}", headers=header[n % 3](n)))
        requests = wait_for_requests(receiver, 2 * CLIENTS * EACH)
        ended = running.stop()
    ended.assert_clean(seen=2 * CLIENTS * EACH)
    assert_ambiguous(ended, 0)
    assert f"upstream 127.0.0.1:{BEHIND}" in ended.stderr
    asked, called = split(requests)
    assert asked.keys() == called.keys() == {f"/{n}" for n in range(CLIENTS * EACH)}
    for n in range(CLIENTS * EACH):
        cause, call = asked[f"/{n}"], called[f"/{n}"]
        assert_told(call, f"127.0.0.1:{BEHIND}", f"/{n}", gateway.service)
        assert call["thread.id"] == cause["thread.id"]
        if n % 3 == 2:
            # The SDK's own span is the parent, whatever caused that.
            assert call.span.trace_id == TRACE.format(n)
            assert call.span.parent_span_id == PARENT.format(n)
            assert cause.span.trace_id != call.span.trace_id
            continue
        assert call.span.trace_id == cause.span.trace_id
        assert call.span.parent_span_id == cause.span.span_id
        assert cause.span.parent_span_id == (PARENT.format(n) if n % 3 else "")
        assert cause.stamp_unix_ns("read") < call.stamp_unix_ns("write")
        assert call.stamp_unix_ns("read") < cause.stamp_unix_ns("write")


def test_nginx_mingles_requests_so_none_gets_a_parent(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """One worker, many connections, kept ones to the upstream: no parent, not a wrong one."""
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        nginx(net, tmp_path, PORT, upstream=BEHIND),
        agent(tmp_path, *options(net), environment=to(receiver)) as running,
    ):
        running.wait_ready()
        all_at_once(
            net, lambda client, n: client.ask(
                f"/{n}", headers={"traceparent": traceparent(n)} if n % 2 else {}
            )
        )  # fmt: skip
        requests = wait_for_requests(receiver, 2 * CLIENTS * EACH)
        ended = running.stop()
    ended.assert_clean(seen=2 * CLIENTS * EACH)
    # The other half carries a context of its own.
    assert_ambiguous(ended, CLIENTS * EACH // 2)
    asked, called = split(requests)
    assert asked.keys() == called.keys() == {f"/{n}" for n in range(CLIENTS * EACH)}
    for n in range(CLIENTS * EACH):
        call = called[f"/{n}"]
        # nginx hands on the Host header that it is told to, and traceparent as it came.
        assert_told(call, f"{net.server.ipv4}:{PORT}", f"/{n}", "nginx")
        assert call.span.parent_span_id == (PARENT.format(n) if n % 2 else "")
        assert call.span.trace_id == TRACE.format(n) or n % 2 == 0
    roots = [each.span.trace_id for each in requests if not each.span.parent_span_id]
    assert len(set(roots)) == len(roots) == CLIENTS * EACH


def test_samplers_keep_a_request_with_all_that_it_caused(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    environment = {
        **to(receiver), "OTEL_TRACES_SAMPLER": "parentbased_traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.5",
    }  # fmt: skip
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        python_server(net, tmp_path, "threading_gateway", PORT, str(BEHIND)),
        agent(tmp_path, *options(net), environment=environment) as running,
    ):
        running.wait_ready()
        header = ({}, {"traceparent": traceparent(1)}, {"traceparent": traceparent(2, "00")})
        all_at_once(net, lambda client, n: client.ask(f"/{n}", headers=header[n % 3]))
        ended = running.stop()
    assert ended.sums is not None
    requests = wait_for_requests(receiver, ended.sums["exported"])
    asked, called = split(requests)
    assert asked.keys() == called.keys()
    kept = [sum(int(path[1:]) % 3 == kind for path in asked) for kind in range(3)]
    of_each = [len(range(kind, CLIENTS * EACH, 3)) for kind in range(3)]
    assert 0 < kept[0] < of_each[0]
    assert kept[1:] == [of_each[1], 0]
    ended.assert_clean(seen=2 * CLIENTS * EACH, sampled_out=2 * (CLIENTS * EACH - len(asked)))


def test_a_client_without_a_server(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    """Only upstreams are measured: the client's side of the veth, to a name, with errors."""
    with (
        python_server(net, tmp_path, "threading_server", BEHIND),
        agent(
            tmp_path,
            "--netns",
            net.client.netns,
            "--interface",
            net.client.interface,
            "--upstream",
            f"{net.server.ipv4}:{BEHIND}",
            "--upstream",
            f"[{net.server.ipv6}]:{BEHIND}",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        for host in (net.server.ipv4, net.server.ipv6):
            with Client.of(net, BEHIND, host) as client:
                for number in range(COUNT):
                    client.ask(f"/{number}?token=s3cret")
                client.ask("/missing")
        requests = wait_for_requests(receiver, 2 * (COUNT + 1))
        running.stop().assert_clean(seen=2 * (COUNT + 1))
    assert {each.span.kind for each in requests} == {Kind.CLIENT}
    for each in requests:
        each.assert_tiled()
        each.assert_complete()
        host = net.server.ipv4 if "." in each["network.peer.address"] else f"[{net.server.ipv6}]"
        assert each["server.address"] == host.strip("[]")
        missing = each["otelbpf.connection.request"] == COUNT
        path = "/missing" if missing else f"/{each['otelbpf.connection.request']}"
        assert each["url.full"] == f"http://{host}:{BEHIND}{path}"
        assert each["error.type"] == ("404" if missing else None)


def test_an_export_to_an_upstream_is_not_measured(receiver: Receiver, tmp_path: Path) -> None:
    """The collector's port is one of those that requests are sent to, and others send some."""
    port = int(receiver.http_endpoint.rpartition(":")[2])
    with agent(
        tmp_path, "--interface", "lo", "--client-port", port,
        environment={
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.http_endpoint,
        },
    ) as running:  # fmt: skip
        running.wait_ready()
        for number in range(COUNT):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=DEADLINE_S)
            connection.request("GET", f"/{number}")
            connection.getresponse().read()
            connection.close()
            # Each is exported before the next one is asked.
            wait_for_requests(receiver, number + 1)
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert ended.sums is not None
    assert ended.sums["connections"]["own"] > 0

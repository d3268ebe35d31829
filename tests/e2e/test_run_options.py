# SPDX-License-Identifier: Apache-2.0
"""The options of `otelbpf run`, each seen to do what it says."""

from __future__ import annotations

import socket
import time
from collections import Counter
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, python_server
from stack import COUNT, agent, measured, to, wait_for_requests
from support.namespaces import Network

from otelbpf.kernel.hooks import FORCEABLE, Mechanism


def ask(net: Network, server: Server, host: str | None = None) -> None:
    with Client.of(net, server.port, host) as client:
        for number in range(COUNT):
            client.ask(f"/{number}?key=s3cret&n={number}")


def test_stages_as_attributes_the_query_and_no_xdp(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """--stages attributes, --capture-query and --xdp off, which do not meddle with one another."""
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
        "--stages",
        "attributes",
        "--capture-query",
        "--xdp",
        "off",
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        assert net.server.xdp_program() is None
        assert "XDP" not in running.stderr
        ask(net, server)
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    assert len(receiver.spans()) == COUNT
    for number, request in enumerate(requests):
        assert request["url.query"] == f"key=s3cret&n={number}"
        stages = {
            name.removeprefix("otelbpf.stage."): value
            for name, value in request.span.attributes.items()
            if name.startswith("otelbpf.stage.")
        }
        assert sum(stages.values()) == request.span.end_unix_ns - request.span.start_unix_ns
        assert min(stages.values()) >= 0
        stamps = {stamp for name in stages for stamp in name.split("_to_")}
        assert stamps >= {"tc", "tcp", "queued", "read", "write", "tc_out"}
        assert "nic" not in stamps
        assert "nic" in request["otelbpf.ledger.absent"]
        assert request["otelbpf.ledger.complete"] is False


@pytest.mark.parametrize("mechanism", list(FORCEABLE))
def test_one_mechanism_for_the_hooks_that_have_a_choice(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path, mechanism: Mechanism
) -> None:
    """Each stamp is attached so, or said to be absent; and so it is."""
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
        "--hooks",
        mechanism,
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        (attached,) = (
            line for line in running.stderr.splitlines() if line.startswith("otelbpf: attached: ")
        )
        ask(net, server)
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    targets = {
        "tcp": {"tcp_probe", "tcp_rcv_established"},
        "queued": {"sk_data_ready", "sock_def_readable"},
        "read": {"tcp_rcv_space_adjust"},
        "write": {"tcp_sendmsg_locked"},
    }
    for stamp, places in targets.items():
        has_it = any(f"{mechanism} {place}" in attached for place in places)
        assert has_it != (f"otelbpf: absent from requests: {stamp}" in running.stderr)
        for request in requests:
            assert has_it != (stamp in request.span.attributes.get("otelbpf.ledger.absent", ()))
            request.assert_tiled()


def test_a_query_is_left_out_unless_asked_for(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Nowhere in what is exported. Meanwhile --duration ends the agent."""
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
        "--duration",
        "1.5",
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        ask(net, server)
        running.wait().assert_clean(seen=COUNT)
        assert not running.ready_file.exists()
    assert len(measured(receiver.spans())) == COUNT
    assert all(b"s3cret" not in export.SerializeToString() for export in receiver.exports())


def test_two_interfaces_and_two_ports(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """And a third port and the loopback, which nobody asked to measure. The netns is a path."""
    with (
        python_server(net, tmp_path, "threading_server", 8081) as second,
        python_server(net, tmp_path, "asyncio_server", 8082) as third,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--interface",
            net.second.interface,
            "--port",
            server.port,
            "--port",
            second.port,
            "--netns",
            net.server.path,
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        ids = [
            net.server.xdp_program(name)
            for name in (net.server.interface, net.second.interface, "lo")
        ]
        assert ids[0] is not None
        assert ids[1] is not None
        assert ids[2] is None
        for host in (net.server.ipv4, net.second.ipv4):
            for each in (server, second, third):
                ask(net, each, host)
        with Client.local(net, server.port) as client:
            client.ask("/not/measured")
        requests = wait_for_requests(receiver, 4 * COUNT)
        running.stop().assert_clean(seen=4 * COUNT)
    assert Counter(
        (each["network.local.address"], each["network.local.port"]) for each in requests
    ) == {
        (host, port): COUNT
        for host in (net.server.ipv4, net.second.ipv4)
        for port in (server.port, second.port)
    }
    for request in requests:
        request.assert_tiled()
        request.assert_complete()


def test_the_loopback_of_the_agents_own_namespace(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Client, server, agent and collector share it; every packet passes it both ways."""
    with (
        net.server.call(Receiver) as receiver,
        agent(
            tmp_path,
            "--interface",
            "lo",
            "--port",
            server.port,
            environment=to(receiver),
            under=net.server.enter(),
        ) as running,
    ):
        running.wait_ready()
        with Client.local(net, server.port) as client:
            for number in range(COUNT):
                client.ask(f"/{number}", "POST", body=b"z" * 100_000)
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    assert [request["url.path"] for request in requests] == [f"/{n}" for n in range(COUNT)]
    for request in requests:
        assert request["http.request.body.size"] == 100_000
        request.assert_tiled()
        request.assert_complete()


def test_a_connection_older_than_the_agent_is_taken_up(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    with Client.of(net, server.port) as client:
        client.ask("/before")
        with agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running:
            running.wait_ready()
            # By these it becomes certain where a request begins.
            for _ in range(2):
                client.ask("/unknown")
            for number in range(COUNT):
                client.ask(f"/{number}")
            requests = wait_for_requests(receiver, COUNT)
            ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert ended.sums["connections"]["adopted"] == 1
    assert [request["url.path"] for request in requests] == [f"/{n}" for n in range(COUNT)]


def test_requests_that_are_never_answered(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """A span says how they ended; one that is open when the agent stops is counted.

    However long that has been silent: its socket is open.
    """
    request = b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n"
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
        "--idle-timeout",
        "0.2",
        environment=to(receiver),
    ) as running:
        running.wait_ready()
        connections = [net.client.connect(net.server.ipv4, server.port) for _ in range(COUNT)]
        for connection in connections:
            connection.sendall(request)
        ask(net, server)  # these are answered, so the others have arrived
        for connection in connections:
            linger = b"\1\0\0\0\0\0\0\0"  # on, 0 s: close() resets
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connection.close()
        still_open = net.client.connect(net.server.ipv4, server.port)
        still_open.sendall(request)
        with Client.of(net, server.port) as client:
            client.ask("/last")
        wait_for_requests(receiver, 2 * COUNT + 1)
        time.sleep(2)  # the agent looks each second
        ended = running.stop()
        still_open.close()
    assert ended.sums["lost"] == {"unanswered_at_stop": 1}
    assert ended.sums["exported"] == 2 * COUNT + 1
    ended.assert_adds_up()
    unanswered = [each for each in measured(receiver.spans()) if each["url.path"] == "/never"]
    assert len(unanswered) == COUNT
    for each in unanswered:
        assert each["error.type"] == "client_reset"
        assert each["http.response.status_code"] is None
        assert each["http.request.size"] == len(request)
        assert {"write", "tc_out"} <= set(each["otelbpf.ledger.absent"])
        assert each.stage_names[-1].endswith("_to_ended")
        assert each["otelbpf.ledger.complete"] is False
        each.assert_tiled()

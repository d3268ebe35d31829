# SPDX-License-Identifier: Apache-2.0
"""Nothing is missed in silence: what is not measured is said at once, and measured again."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from demo.processes import running
from demo.receiver import Behaviour, Receiver
from prometheus import scrape
from servers import Server, python_server
from stack import COUNT, LOADING, OTELBPF, agent, to, wait_for_requests, wait_for_word
from support.commands import run
from support.namespaces import Network, join, network
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

from otelbpf.host.netns import find_netns
from otelbpf.kernel import bpf_info, libbpf

NOWHERE = {"OTEL_TRACES_EXPORTER": "none"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[tuple[Network, Server]]:
    """A network that a test may change as it likes, and a server in it."""
    with network() as net, python_server(net, tmp_path, "asyncio_server", 8080) as server:
        yield net, server


def options(net: Network, port: int) -> tuple[str | int, ...]:
    return "--interface", net.server.interface, "--port", port, "--netns", net.server.netns


def ask(net: Network, port: int, count: int = COUNT, host: str | None = None) -> None:
    with Client.of(net, port, host) as client:
        for number in range(count):
            client.ask(f"/{number}")


def test_it_says_at_once_that_it_loads(net: Network, server: Server, tmp_path: Path) -> None:
    """Before anything else: to load programs may take long."""
    with agent(tmp_path, *options(net, server.port), environment=NOWHERE) as running:
        wait_until(lambda: "\n" in running.stderr, "it said something")
        assert running.stderr == f"{LOADING}port {server.port} on {net.server.interface}\n"
        assert not running.ready_file.exists()
        running.wait_ready()
        running.stop().assert_clean(seen=0)


@pytest.mark.parametrize("option", [(), ("--handler", f"{sys.executable}:PyObject_Call")])
def test_it_waits_for_no_import_that_it_can_do_without(
    net: Network, server: Server, tmp_path: Path, option: tuple[str, ...]
) -> None:
    """They take longer than all that it says before it is ready."""
    environment = {**NOWHERE, "OTEL_METRICS_EXPORTER": "none", "PYTHONPROFILEIMPORTTIME": "1"}
    with agent(tmp_path, *options(net, server.port), *option, environment=environment) as running:
        running.wait_ready()
        imported = set(re.findall(r"^import time:.*\| +(\S+)$", running.stderr, re.MULTILINE))
    assert {"numpy", "otelbpf.agent.run"} <= imported
    large = {"bcc", "pyroute2", "asyncio", "grpc", "google.protobuf", "capstone", "yaml"}
    assert imported & large == ({"capstone"} if option else set())


def test_an_interface_that_goes_and_comes_again(
    own: tuple[Network, Server], receiver: Receiver, tmp_path: Path
) -> None:
    net, server = own
    port = unused_port()
    environment = {
        **to(receiver),
        "OTEL_METRICS_EXPORTER": "prometheus",
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
        "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
    }
    name = net.server.interface

    def unmeasured() -> dict[str, float]:
        lines = [
            line
            for line in scrape(port).splitlines()
            if line.startswith("otelbpf_interfaces_unmeasured{")
        ]
        assert all(f'network_interface_name="{name}"' in line for line in lines)
        return {
            line.split('otelbpf_reason="')[1].split('"')[0]: float(line.split()[-1])
            for line in lines
        }

    with agent(tmp_path, *options(net, server.port), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_for_requests(receiver, COUNT)
        assert unmeasured() == dict.fromkeys(("gone", "namespace_gone", "behind", "refused"), 0.0)
        run("ip", "-n", net.server.netns, "link", "del", name)
        wait_for_word(running, f"interface {name} is gone")
        wait_until(lambda: not running.ready_file.exists(), "it is not ready")
        # A scrape is told again for a second.
        wait_until(lambda: unmeasured()["gone"] == 1.0, "it is told to be gone")
        join(net.server, net.client)
        wait_for_word(running, f"interface {name} is there again, and is measured")
        wait_until(running.ready_file.exists, "it is ready again")
        wait_until(lambda: unmeasured()["gone"] == 0.0, "it is told to be there")
        ask(net, server.port)
        wait_for_requests(receiver, 2 * COUNT)
        ended = running.stop()
    ended.assert_clean(seen=2 * COUNT)
    told = ended.sums["interfaces"][name]
    assert told["unmeasured"] is None
    assert told["unmeasured_s"]["gone"] > 0.0
    assert f"otelbpf: {name} was not measured for " in ended.stderr


def test_a_namespace_that_ends(tmp_path: Path) -> None:
    with network() as net, agent(tmp_path, *options(net, 8080), environment=NOWHERE) as running:
        running.wait_ready()
        run("ip", "netns", "del", net.server.netns)
        wait_for_word(running, f"network namespace {net.server.netns} has ended")
        wait_until(lambda: not running.ready_file.exists(), "it is not ready")
        ended = running.stop()
    ended.assert_clean(seen=0)
    assert ended.sums["interfaces"][net.server.interface]["unmeasured"] == "namespace_gone"


def test_connections_by_an_interface_that_is_not_measured(
    net: Network, server: Server, tmp_path: Path
) -> None:
    with agent(tmp_path, *options(net, server.port), environment=NOWHERE) as running:
        running.wait_ready()
        for _ in range(3):
            with Client.local(net, server.port) as client:
                client.ask("/")
        ask(net, server.port, host=net.second.ipv4)
        said = wait_for_word(running, "on lo")
        assert said.endswith("in on lo, which is not measured: add --interface lo")
        assert f"to port {server.port} " in said
        said = wait_for_word(running, f"on {net.second.interface}")
        assert f"add --interface {net.second.interface}" in said
        ended = running.stop()
    ended.assert_clean(seen=0)
    assert ended.sums["connections"]["unseen"] == 4
    assert "otelbpf: 4 connections had bytes that were not seen on a measured" in ended.stderr


@contextlib.contextmanager
def redirected(net: Network, port: int, to_port: int) -> Iterator[None]:
    """What comes in for one port goes to another."""
    rule = (
        "PREROUTING",
        "-p",
        "tcp",
        "--dport",
        str(port),
        "-j",
        "REDIRECT",
        "--to-port",
        str(to_port),
    )
    run(*net.server.enter(), "iptables", "-t", "nat", "-A", *rule)
    try:
        yield
    finally:
        run(*net.server.enter(), "iptables", "-t", "nat", "-D", *rule)


def test_a_port_that_is_redirected(net: Network, server: Server, tmp_path: Path) -> None:
    """The port on the wire is told, and can be measured."""
    with redirected(net, 80, server.port):
        with agent(tmp_path, *options(net, server.port), environment=NOWHERE) as running:
            running.wait_ready()
            ask(net, 80)
            said = wait_for_word(running, f"connection to port {server.port} ")
            assert f"comes in on {net.server.interface} to port 80, and REDIRECT" in said
            assert "--port 80 instead" in said
            running.stop().assert_clean(seen=0)
        with agent(tmp_path, *options(net, 80), environment=NOWHERE) as running:
            running.wait_ready()
            ask(net, 80)
            ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert "listens" not in ended.stderr


def test_what_is_said_of_a_redirected_port_does_not_contradict_itself(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Whether it is measured alone or with others, and whether requests have come by then."""
    others = ("--port", server.port, "--port", 9)
    with redirected(net, 80, server.port):
        ask(net, 80)
        with agent(tmp_path, *options(net, 80), *others, environment=NOWHERE) as running:
            running.wait_ready()
            wait_for_word(running, "nobody listens on port 9 ")
            ask(net, 80)
            said = wait_for_word(running, f"connection to port {server.port} ")
            assert f"to {net.server.ipv4}:80, and REDIRECT" in said
            ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert "nobody listens on port 80" not in ended.stderr


@pytest.mark.parametrize("inside", [False, True], ids=["from outside", "in its own namespace"])
def test_a_program_that_comes_before_it(
    net: Network, server: Server, tmp_path: Path, inside: bool
) -> None:
    """It decides about every packet, and so would end the line.

    In its own namespace the agent has given up the right to ask for programs by their numbers.
    """
    arguments = options(net, server.port)
    if inside:
        arguments, under = arguments[: arguments.index("--netns")], net.server.enter()
    else:
        under = []
    with agent(tmp_path, *arguments, environment=NOWHERE, under=under) as running:
        running.wait_ready()
        netns = find_netns(net.server.netns)
        program = libbpf.load_program("decides", libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_SCHED_CLS)
        number = bpf_info.program_info(program).id
        link = netns.run(
            lambda: libbpf.link_create(
                program,
                socket.if_nametoindex(net.server.interface),
                libbpf.BPF_TCX_INGRESS,
                libbpf.BPF_F_BEFORE,
            )
        )
        try:
            name = f"program decides (id {number})"
            said = wait_for_word(running, name)
            assert said == (
                f"otelbpf: {name} came before otelbpf at TC ingress of {net.server.interface}, "
                "which is first again"
            )
            ask(net, server.port)
            ended = running.stop()
        finally:
            os.close(link)
            os.close(program)
    ended.assert_clean(seen=COUNT)


def test_an_interface_of_its_own_namespace_that_comes_again(
    own: tuple[Network, Server], tmp_path: Path
) -> None:
    """By then the agent has given up most of its rights."""
    net, server = own
    arguments = options(net, server.port)
    with agent(
        tmp_path,
        *arguments[: arguments.index("--netns")],
        environment=NOWHERE,
        under=net.server.enter(),
    ) as running:
        running.wait_ready()
        run("ip", "-n", net.server.netns, "link", "del", net.server.interface)
        join(net.server, net.client)
        said = wait_for_word(running, "is there again, and is measured")
        assert "absent" not in said
        ask(net, server.port)
        running.stop().assert_clean(seen=COUNT)


def test_a_port_that_nobody_listens_on(net: Network, server: Server, tmp_path: Path) -> None:
    with agent(tmp_path, *options(net, 9), environment=NOWHERE) as running:
        said = wait_for_word(running, "nobody listens on port 9 ")
        assert f"in network namespace {net.server.netns}; " in said
        assert f"{server.executable} listens on {server.port}" in said
        running.stop().assert_clean(seen=0)


def test_nothing_is_said_where_somebody_listens(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Nor where all is well in any other way: it would have been by the time of the other hint."""
    both = (*options(net, server.port), "--port", 9)
    with agent(tmp_path, *both, environment=to(receiver)) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    with agent(tmp_path, *both, environment=NOWHERE) as running:
        running.wait_ready()
        wait_for_word(running, "nobody listens on port 9 ")
        assert f"nobody listens on port {server.port} " not in running.stderr
        running.stop().assert_clean(seen=0)


def say_hello_over_tls(net: Network, port: int) -> None:
    """And does not wait for an answer, which a server without TLS has not."""
    outgoing = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="x")
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with net.client.connect(net.server.ipv4, port) as sock:
        sock.sendall(outgoing.read())


def test_tls_and_http2(net: Network, server: Server, tmp_path: Path) -> None:
    with agent(tmp_path, *options(net, server.port), environment=NOWHERE) as running:
        running.wait_ready()
        for _ in range(3):
            say_hello_over_tls(net, server.port)
        said = wait_for_word(running, " TLS")
        assert said.endswith(
            f" to port {server.port} are TLS, which is not read: measure what ends it, behind it"
        )
        subprocess.run(
            [
                *net.client.enter(),
                "curl",
                "-s",
                "--max-time",
                "1",
                "--http2-prior-knowledge",
                f"http://{net.server.ipv4}:{server.port}/",
            ],
            timeout=DEADLINE_S,
        )
        assert wait_for_word(running, "HTTP/2") == (
            f"otelbpf: 1 connection to port {server.port} is HTTP/2, which is not read"
        )
        ended = running.stop()
    connections = ended.sums["connections"]
    assert (connections["tls"], connections["http2"], connections["not_http"]) == (3, 1, 4)
    assert connections["unseen"] == 0


def test_a_stop_that_waits_for_the_collector(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    receiver.behave(Behaviour(refuse=True))
    environment = {**to(receiver), "OTEL_BSP_EXPORT_TIMEOUT": "3000"}
    with agent(tmp_path, *options(net, server.port), environment=environment) as running:
        running.wait_ready()
        ask(net, server.port)
        ended = running.stop()
    assert "otelbpf: stopping: 23 requests wait for the collector, for 3 s at most" in ended.stderr
    ended.assert_adds_up()
    assert ended.sums["lost"] == {"export_failed": COUNT}


def test_top_says_it_too(net: Network, server: Server, tmp_path: Path) -> None:
    command = [OTELBPF, "top", *map(str, options(net, server.port)), "--interval", "0.2"]
    with running("top", command, tmp_path) as process:
        wait_until(lambda: "otelbpf top" in process.stdout.read_text(), "there is a table")
        with Client.local(net, server.port) as client:
            client.ask("/")
        wait_until(lambda: "add --interface lo" in process.stderr.read_text(), "it said so")
        process.popen.terminate()
        assert process.popen.wait(DEADLINE_S) == 0

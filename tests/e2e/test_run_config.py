# SPDX-License-Identifier: Apache-2.0
"""A configuration file: it measures, the command line holds, and `check` says what `run` says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, python_server
from stack import COUNT, agent, measured, otelbpf, to, wait_for_requests
from support.namespaces import Network


def configuration(directory: Path, *lines: str) -> Path:
    path = directory / "otelbpf.yaml"
    path.write_text("\n".join(lines) + "\n")
    return path


def of(net: Network) -> tuple[str, ...]:
    return f"netns: {net.server.netns}", f"interface: [{net.server.interface}]"


def test_what_a_file_says_is_done(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    path = configuration(
        tmp_path, *of(net), f"port: [{server.port}]", "stages: attributes", "capture-query: true"
    )
    with agent(tmp_path, "--config", path, environment=to(receiver)) as running:
        running.wait_ready()
        assert f"otelbpf: measuring port {server.port}; " in running.stderr
        with Client.of(net, server.port) as client:
            for number in range(COUNT):
                client.ask(f"/{number}?n={number}")
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    assert [each["url.query"] for each in requests] == [f"n={n}" for n in range(COUNT)]
    # The stages are in no spans of their own.
    assert len(receiver.spans()) == COUNT


def test_the_command_line_holds(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """Its one port, and not the file's; all else is the file's."""
    path = configuration(
        tmp_path, *of(net), f"port: [9, {server.port}]", "service-name: file", "xdp: off"
    )
    with (
        python_server(net, tmp_path, "threading_server", 8081) as second,
        # agent() says --xdp on.
        agent(
            tmp_path, "--config", path, "--port", second.port, environment=to(receiver)
        ) as running,
    ):
        running.wait_ready()
        assert f"otelbpf: measuring port {second.port}; " in running.stderr
        assert net.server.xdp_program() is not None
        for each in (server, second):
            with Client.of(net, each.port) as client:
                for number in range(COUNT):
                    client.ask(f"/{number}")
        wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(seen=COUNT)
    requests = measured(receiver.spans())
    assert {each["network.local.port"] for each in requests} == {second.port}
    assert {each.span.resource["service.name"] for each in requests} == {"file"}


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("port: 80", "prot: 81"), "{}:4: there is no key 'prot': did you mean 'port'?"),
        (("port: http",), "{}:3: port: 'http' is no TCP port: it is a number from 1 to 65535"),
        (("port: [80",), "{}:3: this is no YAML: "),
        (("port: 80", "keep-4xx: true"), "--keep-4xx says what --sample and --slow keep: "),
        ((), "nothing to measure: "),
    ],
)
def test_check_and_run_refuse_the_same_file(
    net: Network, tmp_path: Path, lines: tuple[str, ...], said: str
) -> None:
    path = configuration(tmp_path, *of(net), *lines)
    ran = otelbpf(tmp_path, "run", "--config", path, "--duration", "0.1")
    checked = otelbpf(tmp_path, "check", "--config", path)
    ran.assert_refused()
    assert ran.stderr.startswith(f"otelbpf: {said.format(path)}")
    assert (checked.code, checked.stdout, checked.stderr) == (2, "", ran.stderr)


def test_check_and_run_take_the_same_file(net: Network, tmp_path: Path) -> None:
    """With the interfaces and the namespace that it names."""
    path = configuration(tmp_path, *of(net), "port: 80", "duration: 0.1", "json: true")
    checked = otelbpf(tmp_path, "check", "--config", path)
    assert (checked.code, checked.stderr) == (0, "")
    names = {finding["name"] for finding in json.loads(checked.stdout)["findings"]}
    assert f"XDP on {net.server.interface}" in names
    environment = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
    ran = otelbpf(tmp_path, "run", "--config", path, environment=environment)
    assert ran.code == 0, ran.stderr
    assert ran.stderr.endswith("otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0\n")


def test_top_takes_it(net: Network, tmp_path: Path) -> None:
    path = configuration(
        tmp_path, *of(net), "port: 80", "duration: 0.1", "sort: p99", "sample: 1/10"
    )
    ended = otelbpf(tmp_path, "top", "--config", path)
    assert ended.code == 0, ended.stderr
    assert f"to measure port 80 on {net.server.interface}\n" in ended.stderr

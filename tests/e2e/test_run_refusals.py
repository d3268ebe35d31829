# SPDX-License-Identifier: Apache-2.0
"""What the command refuses: in one sentence, with status 2, and with nothing attached."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from client import Client
from servers import Server
from stack import COUNT, OTELBPF, agent, otelbpf
from support.commands import run
from support.namespaces import Network, network
from support.waiting import wait_until

#: Another user, without a right but to read all files: a checkout may be in a private place.
AS_NOBODY = (
    "setpriv",
    "--reuid=65534",
    "--regid=65534",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
    "--",
)
WITHOUT_NET_ADMIN = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", "--")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--interface", "lo"], ["--port"]),
        (["--port", "80"], ["--interface"]),
        (["--interface", "lo", "--port", "0"], ["--port", "'0'", "1 to 65535"]),
        (["--interface", "lo", "--port", "65536"], ["--port", "'65536'", "1 to 65535"]),
        (["--interface", "lo", "--port", "http"], ["--port", "'http'"]),
        (["--interface", "lo", "--port", "²"], ["--port", "'²'", "1 to 65535"]),
        (["--interface", "lo", "--port", "9" * 5000], ["--port", "1 to 65535"]),
        (["--interface", "lo", "--port", "80", "--duration", "0"], ["--duration", "'0'"]),
        (["--interface", "lo", "--port", "80", "--duration", "nan"], ["--duration", "'nan'"]),
        (["--interface", "lo", "--port", "80", "--stages", "none"], ["--stages", "'none'"]),
        (["--interface", "lo", "--port", "80", "--ring", "3"], ["--ring", "'3'"]),
        (["--interface", "lo", "--port", "80", "--ring", "²"], ["--ring", "from 16"]),
        (["--interface", "lo", "--port", "80", "--connections", "1"], ["--connections", "'1'"]),
        (["--interface", "lo", "--port", "80", "--connections", "²"], ["--connections", "from 16"]),
        (["--interface", "lo", "--upstream", "::1:80"], ["--upstream", "'::1:80'", "[::1]:80"]),
        (
            ["--interface", "lo", "--upstream", "no-such-host.invalid:80"],
            ["'no-such-host.invalid'", "--client-port"],
        ),
        (["--interface", "lo", "--client-port", "0"], ["--client-port", "'0'"]),
        (
            ["--interface", "lo", "--port", "80", "--proxy-protocol", "balancer"],
            ["--proxy-protocol", "'balancer'", "10.0.0.0/8"],
        ),
        (
            ["--interface", "lo", "--port", "80", "--proxy-protocol", "10.1.2.3/8"],
            ["'10.1.2.3/8'", "write 10.0.0.0/8"],
        ),
        (
            ["--interface", "lo", "--port", "80"]
            + [f"--proxy-protocol=10.0.0.{number}" for number in range(65)],
            ["--proxy-protocol", "65 networks", "64"],
        ),
        (
            ["--interface", "lo", "--port", "80", "--forwarded-by", "10.1.2.3/8"],
            ["--forwarded-by", "'10.1.2.3/8'", "write 10.0.0.0/8"],
        ),
        (
            ["--interface", "lo", "--port", "80", "--forwarded-by", "::1", "--forwarded-header=x"],
            ["--forwarded-header", "'x'", "forwarded"],
        ),
        (
            ["--interface", "lo", "--port", "80", "--forwarded-header", "forwarded"],
            ["--forwarded-header", "--forwarded-by"],
        ),
        *(
            (["--interface", "lo", "--client-port", "80", option, "::1"], [option, "--port"])
            for option in ("--proxy-protocol", "--forwarded-by")
        ),
        (["--interface", "lo", "--port", "80", "--out", "x"], ["--out"]),
        (["--interface", "lo", "--port", "80", "--output", "x"], ["--output", "otlp_json_file"]),
        (["--interface", "lo", "--port", "80", "--ready-file", "/none/x"], ["--ready-file"]),
        (["--interface", "lo", "--port", "80", "--sums-file", "/none/x"], ["--sums-file"]),
        (["--interface", "lo", "--port", "80", "--health", "x"], ["--health", "'x'", "65535"]),
        (["--interface", "lo", "--port", "80", "--health", "::1"], ["--health", "[::1]:80"]),
        (
            ["--interface", "lo", "--port", "80", "--health", "198.51.100.1:1"],
            ["198.51.100.1:1", "Cannot assign", "--health"],
        ),
        (["--interface", "lo", "--port", "80", "--netns", "none-such"], ["'none-such'", "netns"]),
        (["--interface", "lo", "--port", "80", "--netns", "/none/such"], ["'/none/such'"]),
        (["--interface", "lo", "--port", "80", "--netns", "/etc/passwd"], ["/etc/passwd"]),
        (["--interface", "none0", "--port", "80"], ["no network interface 'none0'", "lo"]),
        (["--interface", "", "--port", "80"], ["no network interface ''"]),
    ],
    ids=lambda value: " ".join(value)[:60],
)
def test_arguments_that_cannot_be_used(
    tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    environment = {"OTEL_TRACES_EXPORTER": "none"}
    otelbpf(tmp_path, "run", *arguments, environment=environment).assert_refused(*words)


def test_an_interface_of_another_namespace(net: Network, tmp_path: Path) -> None:
    """The namespace is named, and so is what it has."""
    otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--netns",
        net.client.netns,
    ).assert_refused(
        net.server.interface, f"in network namespace {net.client.netns}", net.client.interface
    )


def test_an_interface_without_ethernet_headers(net: Network, tmp_path: Path) -> None:
    run("ip", "-n", net.server.netns, "tuntap", "add", "dev", "tun0", "mode", "tun")
    otelbpf(
        tmp_path, "run", "--interface", "tun0", "--port", 80, "--netns", net.server.netns
    ).assert_refused("tun0", "Ethernet")


def test_an_interface_that_is_removed_while_it_loads(tmp_path: Path) -> None:
    """One sentence, which says so, and nothing is left attached."""
    with (
        network(veths=2) as net,
        agent(
            tmp_path,
            "--interface",
            net.second.interface,
            "--interface",
            net.server.interface,
            "--port",
            80,
            "--netns",
            net.server.netns,
            environment={"OTEL_TRACES_EXPORTER": "none"},
        ) as loading,
    ):
        wait_until(lambda: "loading" in loading.stderr, "it has looked for its interfaces")
        run("ip", "-n", net.server.netns, "link", "del", net.server.interface)
        loading.wait().assert_refused(
            f"cannot attach to interface {net.server.interface}: it was removed",
            "start otelbpf again",
        )
        assert not loading.ready_file.exists()
        assert net.server.xdp_program(net.second.interface) is None


def test_an_output_that_cannot_be_written(net: Network, tmp_path: Path) -> None:
    otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--netns",
        net.server.netns,
        "--output",
        tmp_path / "none" / "spans",
        environment={"OTEL_TRACES_EXPORTER": "otlp_json_file"},
    ).assert_refused("cannot write", "none/spans", "--output")


@pytest.mark.parametrize("under", [AS_NOBODY, WITHOUT_NET_ADMIN], ids=["nobody", "no net_admin"])
def test_without_the_rights(net: Network, tmp_path: Path, under: tuple[str, ...]) -> None:
    words = ["CAP_NET_ADMIN", "sudo otelbpf"]
    if under is AS_NOBODY:
        words.append("CAP_SYS_ADMIN")
    otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--netns",
        net.server.netns,
        under=under,
    ).assert_refused(*words)


def test_the_bcc_of_pypi(net: Network, tmp_path: Path) -> None:
    """A package of that name that has nothing to do with BPF."""
    (tmp_path / "bcc").mkdir()
    (tmp_path / "bcc/__init__.py").write_text("__version__ = '1'\n")
    environment = {"PYTHONPATH": str(tmp_path)}
    otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        80,
        "--netns",
        net.server.netns,
        "--loader",
        "bcc",
        environment=environment,
    ).assert_refused(
        str(tmp_path / "bcc/__init__.py"),
        "not the BPF Compiler Collection",
        "pip uninstall bcc",
        "apt install python3-bpfcc",
    )
    checked = otelbpf(tmp_path, "check", "--loader", "bcc", environment=environment)
    assert checked.code == 1
    assert "MISSING  programs: the bcc module" in checked.stdout
    assert "otelbpf cannot run here." in checked.stdout
    # Who does not ask for it is not concerned.
    checked = otelbpf(tmp_path, "check", environment=environment)
    assert checked.code == 0
    assert "ok       programs: ready-made, as the kernel has bpf_loop()\n" in checked.stdout


def test_somebody_elses_xdp_program_is_left_alone(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """What was attached before XDP refused is off again, and the program is the same."""
    options = (
        "--interface",
        net.second.interface,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
    )
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        9,
        "--netns",
        net.server.netns,
        environment={"OTEL_TRACES_EXPORTER": "none"},
    ) as somebody:
        somebody.wait_ready()
        program = net.server.xdp_program()
        otelbpf(tmp_path, "run", *options, "--xdp", "on").assert_refused(
            f"cannot attach XDP to interface {net.server.interface} (it has an XDP program already"
        )
        assert net.server.xdp_program() == program is not None
        assert net.server.xdp_program(net.second.interface) is None
        somebody.stop().assert_clean(seen=0)
    # Everything is free again.
    with agent(tmp_path, *options, environment={"OTEL_TRACES_EXPORTER": "none"}) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            for _ in range(COUNT):
                client.ask()
        running.stop().assert_clean(seen=COUNT)


def test_without_arguments_it_says_what_is_missing(tmp_path: Path) -> None:
    otelbpf(tmp_path).assert_refused("command", "--help")


def test_help_and_version(tmp_path: Path) -> None:
    for arguments in (["--help"], ["run", "--help"], ["check", "--help"]):
        ended = otelbpf(tmp_path, *arguments)
        assert (ended.code, ended.stderr) == (0, "")
        assert ended.stdout.startswith("usage: otelbpf")
    assert otelbpf(tmp_path, "--version").stdout.startswith("otelbpf ")
    assert shutil.which(OTELBPF) and os.access(OTELBPF, os.X_OK)

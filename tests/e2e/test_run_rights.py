# SPDX-License-Identifier: Apache-2.0
"""What rights an agent has left once it has attached, in each thread; and what each is for."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from client import Client
from demo.processes import running
from demo.receiver import Receiver
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from servers import Server
from stack import (
    COUNT,
    OTELBPF,
    agent,
    assert_nothing_left,
    kernel_ids,
    otelbpf,
    to,
    wait_for_requests,
    wait_for_word,
)
from support.namespaces import Network
from support.waiting import wait_until

from otelbpf.errors import KernelError
from otelbpf.host.netns import find_netns
from otelbpf.host.processes import executable_name, mapped_files
from otelbpf.host.rights import TO_LOOK, Capability, kept, with_only
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.needs import programs_need_rights

ALWAYS = {right.capability for right in TO_LOOK} | {Capability.CAP_NET_ADMIN}
NOBODY = 65_534


def bits(capabilities: set[Capability]) -> int:
    return sum(1 << each for each in capabilities)


def threads(pid: int) -> dict[str, dict[str, int]]:
    """Thread -> what the kernel says of its rights."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").iterdir():
        fields = dict(line.split(":\t") for line in (thread / "status").read_text().splitlines())
        found[f"{fields['Name']} {thread.name}"] = {
            name: int(fields[name], 16)
            for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")
        }
    return found


def assert_given_up(pid: int, kept: set[Capability]) -> None:
    """No thread has more than `kept`, nor a way to get more; one of them has it all."""
    of_threads = threads(pid)
    for name, rights in of_threads.items():
        for kind in ("CapPrm", "CapEff", "CapBnd"):
            assert rights[kind] & ~bits(kept) == 0, (name, kind, of_threads)
        assert (rights["CapInh"], rights["CapAmb"], rights["NoNewPrivs"]) == (0, 0, 1), name
    assert bits(kept) in {rights["CapEff"] for rights in of_threads.values()}


def said(stderr: str) -> set[Capability]:
    """Those that an agent says it keeps."""
    (line,) = (line for line in stderr.splitlines() if line.startswith("otelbpf: keeps "))
    return {Capability[name] for name in re.findall(r"\b(CAP_[A-Z_]+) \(", line)}


def ask(net: Network, server: Server) -> None:
    with Client.of(net, server.port) as client:
        for number in range(COUNT):
            client.ask(f"/{number}")


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
def test_every_thread_gives_up_what_is_not_needed_any_more(
    net: Network, server: Server, tmp_path: Path, protocol: str
) -> None:
    """Those of the exporters' libraries too; and all still works, to the last export."""
    with net.server.call(Receiver) as receiver:
        environment = {
            "OTEL_EXPORTER_OTLP_PROTOCOL": protocol,
            "OTEL_METRICS_EXPORTER": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint
            if protocol == "grpc"
            else receiver.http_endpoint,
        }
        with agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            environment=environment,
            under=net.server.enter(),
        ) as started:
            started.wait_ready()
            assert_given_up(started.pid, ALWAYS)
            ask(net, server)
            requests = wait_for_requests(receiver, COUNT)
            assert_given_up(started.pid, ALWAYS)
            assert said(started.stderr) == ALWAYS
            ids = kernel_ids(started.pid)
            ended = started.stop()
        assert_nothing_left(ids)
        assert receiver.metrics()
    ended.assert_clean(seen=COUNT)
    assert "libraries keep all rights" not in ended.stderr
    for request in requests:
        assert request["otelbpf.ledger.complete"] is True
        request.assert_tiled()
        assert request.span.resource["process.executable.name"] == server.executable


def test_another_namespace_can_still_be_entered(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--netns",
        net.server.netns,
        environment=to(receiver),
    ) as started:
        started.wait_ready()
        assert_given_up(started.pid, ALWAYS | {Capability.CAP_SYS_ADMIN})
        assert said(started.stderr) == ALWAYS | {Capability.CAP_SYS_ADMIN}
        started.stop().assert_clean(seen=0)


def test_top_gives_up_as_much(net: Network, server: Server, tmp_path: Path) -> None:
    """Its view has no rights at all."""
    command = [
        *net.server.enter(),
        OTELBPF,
        "top",
        "--interface",
        net.server.interface,
        "--port",
        str(server.port),
        "--interval",
        "0.2",
    ]
    with running("top", command, tmp_path, {"COLUMNS": "120"}) as process:
        wait_until(
            lambda: "no requests yet" in process.stdout.read_text(),
            "it shows a table",
            state=process.stderr.read_text,
        )
        assert_given_up(process.popen.pid, ALWAYS)
        of_view = threads(process.popen.pid)[f"otelbpf {process.popen.pid}"]
        assert of_view["CapPrm"] == 0


def test_open_requests_are_ended_without_a_right(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """A program is run for each of them, and whoever loaded it may."""
    with (
        net.server.call(Receiver) as receiver,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            environment=to(receiver),
            under=net.server.enter(),
        ) as started,
    ):
        started.wait_ready()
        with net.client.connect(net.server.ipv4, server.port) as connection:
            connection.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            ask(net, server)  # these are answered, so the other one has arrived
            wait_for_requests(receiver, COUNT)
            ended = started.stop()
    assert ended.sums["lost"] == {"unanswered_at_stop": 1}
    ended.assert_adds_up()


def test_other_agents_are_known_without_the_right_to_ask_for_programs(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """Each goes before a stranger, and not before the other."""
    options = ("--interface", net.server.interface, "--port", server.port, "--xdp", "off")
    environment = {"OTEL_TRACES_EXPORTER": "none"}

    def attach() -> int:
        index = socket.if_nametoindex(net.server.interface)
        return libbpf.link_create(program, index, libbpf.BPF_TCX_INGRESS, libbpf.BPF_F_BEFORE)

    with (
        agent(tmp_path, *options, environment=environment, under=net.server.enter()) as first,
        agent(tmp_path, *options, environment=environment, under=net.server.enter()) as second,
    ):
        for each in (first, second):
            each.wait_ready()
        program = libbpf.load_program("decides", libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_SCHED_CLS)
        link = net.server.call(attach)
        for each in (first, second):
            wait_for_word(each, f"came before otelbpf at TC ingress of {net.server.interface}")
        ask(net, server)
        for each in (first, second):
            ended = each.stop()
            ended.assert_clean(seen=COUNT)
            assert "program decides (id " in ended.stderr
            assert "program tc_ingress" not in ended.stderr
        os.close(link)
        os.close(program)


#: An agent's Python, in which the kernel has no links for traffic control.
_WITHOUT_TCX = """
from otelbpf.kernel.btf import Btf
has_function = Btf.has_function
Btf.has_function = lambda self, name: name != "tcx_link_attach" and has_function(self, name)
"""


def test_where_filters_watch_they_can_be_taken_off(
    net: Network, server: Server, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(_WITHOUT_TCX)
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        environment={"PYTHONPATH": str(tmp_path), "OTEL_TRACES_EXPORTER": "none"},
        under=net.server.enter(),
    ) as started:
        started.wait_ready()
        assert "clsact" in net.server.qdiscs()
        assert_given_up(started.pid, ALWAYS)
        assert said(started.stderr) == ALWAYS
        ask(net, server)
        started.stop().assert_clean(seen=COUNT)
    assert "clsact" not in net.server.qdiscs()


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    """Another user's directory, who alone may write to it."""
    directory = tmp_path / "foreign"
    directory.mkdir(mode=0o755)
    os.chown(directory, NOBODY, NOBODY)
    return directory


def test_files_in_others_directories_are_still_written(
    net: Network, server: Server, tmp_path: Path, foreign: Path
) -> None:
    ended = otelbpf(
        tmp_path,
        "run",
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--duration",
        "0.1",
        "--sums-file",
        foreign / "sums",
        "--ready-file",
        foreign / "ready",
        environment={"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"},
        under=net.server.enter(),
    )
    assert ended.code == 0, ended.stderr
    assert said(ended.stderr) == ALWAYS | {Capability.CAP_DAC_OVERRIDE}
    assert os.listdir(foreign) == ["sums"]


def test_prometheus_is_answered_on_a_low_port(net: Network, server: Server, tmp_path: Path) -> None:
    kept = ALWAYS | {Capability.CAP_NET_BIND_SERVICE}
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        environment={
            "OTEL_TRACES_EXPORTER": "none",
            "OTEL_METRICS_EXPORTER": "prometheus",
            "OTEL_EXPORTER_PROMETHEUS_PORT": "81",
        },
        under=net.server.enter(),
    ) as started:
        started.wait_ready()
        assert_given_up(started.pid, kept)
        assert said(started.stderr) == kept
        with net.server.call(lambda: socket.create_connection(("localhost", 81))) as scrape:
            scrape.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert scrape.recv(12).endswith(b" 200")
        started.stop().assert_clean(seen=0)


def test_probes_are_answered_on_a_low_port_without_a_right(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """It listens before rights are given up, and who answers never had one."""
    with agent(
        tmp_path,
        "--interface",
        net.server.interface,
        "--port",
        server.port,
        "--health",
        82,
        environment={"OTEL_TRACES_EXPORTER": "none"},
        under=net.server.enter(),
    ) as started:
        started.wait_ready()
        assert_given_up(started.pid, ALWAYS)
        assert said(started.stderr) == ALWAYS
        assert "keep all rights" not in started.stderr
        with net.server.call(lambda: socket.create_connection(("127.0.0.1", 82))) as probe:
            probe.sendall(b"GET /livez HTTP/1.0\r\n\r\n")
            assert probe.recv(12).endswith(b" 200")
        started.stop().assert_clean(seen=0)


@dataclass(frozen=True)
class Scene:
    """What there is to do something with.

    Attributes:
        stranger: another user's process, with a library that is not there any more.
        foreign: another user's directory.
    """

    stranger: int
    foreign: Path
    net: Network


@pytest.fixture
def scene(net: Network, tmp_path: Path, foreign: Path) -> Iterator[Scene]:
    library = tmp_path / "strange.so"
    shutil.copy("/lib/x86_64-linux-gnu/libm.so.6", library)
    with (
        library.open() as opened,
        subprocess.Popen(
            ["cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            # It cannot go where the library is.
            env={"LD_PRELOAD": f"/proc/self/fd/{opened.fileno()}", "OTEL_SERVICE_NAME": "strange"},
            user=NOBODY,
            group=NOBODY,
            extra_groups=[],
            pass_fds=[opened.fileno()],
        ) as process,
    ):
        process.stdin.write(b"x")
        assert process.stdout.read(1) == b"x"  # it has loaded all that it will
        library.unlink()
        yield Scene(process.pid, foreign, net)
        process.stdin.close()


def sees_its_library(scene: Scene) -> bool:
    (library,) = (each for each in mapped_files(scene.stranger) if each.path.name == "strange.so")
    return library.openable is not None


def sees_who_is_there(scene: Scene) -> bool:
    name, line = scene.net.server.interface, libbpf.BPF_TCX_INGRESS
    return scene.net.server.call(
        lambda: bpf_info.attached_programs(socket.if_nametoindex(name), line) == []
    )


def adds_a_qdisc(scene: Scene) -> bool:
    def add() -> bool:
        with IPRoute() as route:
            index = socket.if_nametoindex(scene.net.server.interface)
            route.tc("add", "clsact", index)
            route.tc("del", "clsact", index)
        return True

    return scene.net.server.call(add)


def listens(scene: Scene) -> bool:
    scene.net.server.call(lambda: socket.create_server(("127.0.0.1", 81))).close()
    return True


def writes(scene: Scene) -> bool:
    (scene.foreign / "sums").touch()
    (scene.foreign / "sums").unlink()
    return True


#: What each right is kept for.
PURPOSES: dict[Capability, Callable[[Scene], object]] = {
    Capability.CAP_SYS_PTRACE: lambda scene: executable_name(scene.stranger) == "cat",
    Capability.CAP_DAC_READ_SEARCH: lambda scene: (
        b"OTEL_SERVICE_NAME=strange" in Path(f"/proc/{scene.stranger}/environ").read_bytes()
    ),
    Capability.CAP_CHECKPOINT_RESTORE: sees_its_library,
    Capability.CAP_SYS_ADMIN: lambda scene: find_netns(scene.net.server.netns).cookie,
    Capability.CAP_NET_ADMIN: lambda scene: adds_a_qdisc(scene) and sees_who_is_there(scene),
    Capability.CAP_NET_BIND_SERVICE: listens,
    Capability.CAP_DAC_OVERRIDE: writes,
}


@pytest.mark.parametrize("capability", PURPOSES)
def test_what_a_right_is_kept_for_fails_without_it(scene: Scene, capability: Capability) -> None:
    """And does not fail with it, beside those that are always kept and the one to be there."""
    others = {*ALWAYS, Capability.CAP_SYS_ADMIN} - {capability}
    # The kernel asks for either.
    if capability is Capability.CAP_CHECKPOINT_RESTORE:
        others.discard(Capability.CAP_SYS_ADMIN)

    def attempt() -> bool:
        try:
            return bool(PURPOSES[capability](scene))
        except (PermissionError, KernelError, NetlinkError):
            return False

    assert with_only({*others, capability}, attempt) is True
    assert with_only(others, attempt) is False


def test_these_are_all_that_can_be_kept() -> None:
    """But for CAP_BPF: no kernel here asks for it (tests/unit/test_needs.py makes up one)."""
    everything = kept(
        programs=True, filters=True, namespace=True, low_port=True, files=[Path("/proc/1/none")]
    )
    assert {right.capability for right in everything} == {*PURPOSES, Capability.CAP_BPF}
    assert programs_need_rights() is False

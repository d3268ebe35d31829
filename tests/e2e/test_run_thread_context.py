# SPDX-License-Identifier: Apache-2.0
"""Applications that publish what span each thread works on: it is linked to the request's span."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client, ask_at_once
from demo.receiver import Receiver
from servers import SOURCES, python_server, server
from stack import Agent, Measured, agent, to, wait_for_requests
from support import thread_context
from support.namespaces import Network

PORT = 8080
CONNECTIONS, EACH = 20, 10
CALLER = "00f067aa0ba902b7"
OTHER_TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
# Where the variable is: right below each thread's pointer, or in a block of its own.
FLAVOURS = ["executable", "descriptors", "general-dynamic"]


def build(directory: Path, flavour: str) -> Path:
    """served/handler.c with served/publish.c in it, or beside it in a library."""
    program, here = directory / "publisher", [SOURCES / "publish.c", "-rdynamic"]
    options = {
        "descriptors": "-mtls-dialect=gnu2",
        "general-dynamic": "-mtls-dialect=gnu",
    }
    if flavour != "executable":
        library = directory / "libpublish.so"
        subprocess.run(
            [
                "gcc",
                "-O2",
                "-shared",
                "-fPIC",
                options[flavour],
                SOURCES / "publish.c",
                "-o",
                library,
            ],
            check=True,
        )
        here = [library, f"-Wl,-rpath,{directory}"]
    subprocess.run(
        ["gcc", "-O2", "-pthread", "-DPUBLISH", SOURCES / "handler.c", *here, "-o", program],
        check=True,
    )
    return program


@contextlib.contextmanager
def measured_publisher(
    net: Network,
    receiver: Receiver,
    directory: Path,
    flavour: str = "executable",
    *modes: str,
    **environment: str,
) -> Iterator[Agent]:
    program = build(directory, flavour)
    with (
        server(net, directory, "publisher", PORT, [program, str(PORT), *modes], program.name),
        agent(
            directory,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            environment=to(receiver) | environment,
        ) as running,
    ):
        yield running.wait_ready()


def published(path: str) -> tuple[str, str]:
    """The trace and the span id that served/publish.c makes of a path."""
    text = path.encode()[:16].ljust(16, b".")
    return text.hex(), text[7::-1].hex()


def assert_joined(request: Measured) -> None:
    """It is in the trace that was published for it, and linked to the very span."""
    trace_id, span_id = published(request["url.path"])
    assert request.span.trace_id == trace_id
    assert request.span.links == ((trace_id, span_id),)
    assert request.span.parent_span_id == ""
    assert all(stage.trace_id == trace_id for stage in request.stages)
    assert request["otelbpf.thread_context.trace_id"] is None
    request.assert_complete()
    request.assert_tiled()


def assert_alone(request: Measured) -> None:
    assert request.span.links == ()
    assert bytes.fromhex(request.span.trace_id)[:1] != b"/"
    assert request["otelbpf.thread_context.trace_id"] is None


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_each_request_is_joined_to_the_span_of_the_thread_that_answers_it(
    net: Network, receiver: Receiver, tmp_path: Path, flavour: str
) -> None:
    with measured_publisher(net, receiver, tmp_path, flavour) as running:
        ask_at_once(net, PORT, clients=CONNECTIONS, each=EACH)
        requests = wait_for_requests(receiver, CONNECTIONS * EACH)
        running.stop().assert_clean(CONNECTIONS * EACH)
    assert len({request["url.path"] for request in requests}) == CONNECTIONS * EACH
    for request in requests:
        assert_joined(request)


def test_one_thread_for_all_of_them(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    with measured_publisher(net, receiver, tmp_path, "executable", "epoll") as running:
        ask_at_once(net, PORT, clients=CONNECTIONS, each=EACH)
        requests = wait_for_requests(receiver, CONNECTIONS * EACH)
        running.stop().assert_clean(CONNECTIONS * EACH)
    for request in requests:
        assert_joined(request)


def test_what_is_not_valid_is_not_used(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    with measured_publisher(net, receiver, tmp_path) as running:
        with Client.of(net, PORT) as client:
            for end in ("invalid", "null", "good") * 4:
                client.ask(f"/0/{end}")
        requests = wait_for_requests(receiver, 12)
        running.stop().assert_clean(12)
    for request in requests:
        (assert_joined if request["url.path"] == "/0/good" else assert_alone)(request)


def test_the_callers_trace_stands(net: Network, receiver: Receiver, tmp_path: Path) -> None:
    same_trace, span_id = published("/0/same")
    with measured_publisher(net, receiver, tmp_path) as running:
        with Client.of(net, PORT) as client:
            client.ask("/0/same", headers={"traceparent": f"00-{same_trace}-{CALLER}-01"})
            client.ask("/0/other", headers={"traceparent": f"00-{OTHER_TRACE}-{CALLER}-01"})
        same, other = wait_for_requests(receiver, 2)
        running.stop().assert_clean(2)
    assert (same.span.trace_id, same.span.parent_span_id) == (same_trace, CALLER)
    assert same.span.links == ((same_trace, span_id),)
    assert (other.span.trace_id, other.span.parent_span_id) == (OTHER_TRACE, CALLER)
    assert other.span.links == ()
    assert other["otelbpf.thread_context.trace_id"] == published("/0/other")[0]


def test_the_sampler_decides_on_the_published_trace(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    # Of what these paths become, the low half decides: letters lie below "t...", or above it.
    sampler = {
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": str(int.from_bytes(b"t\0\0\0\0\0\0\0", "big") / 2**64),
    }
    paths = [f"/0/aaaaa{first}/{number}" for first in "az" for number in range(10)]
    with measured_publisher(net, receiver, tmp_path, "executable", **sampler) as running:
        with Client.of(net, PORT) as client:
            for path in paths:
                client.ask(path)
        requests = wait_for_requests(receiver, 10)
        running.stop().assert_clean(20, sampled_out=10)
    assert {request["url.path"] for request in requests} == set(paths[:10])
    for request in requests:
        assert_joined(request)


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return thread_context.install(tmp_path_factory.mktemp("thread-context"))


def test_python_threads(
    net: Network, receiver: Receiver, tmp_path: Path, distribution: Path
) -> None:
    environment = {"PYTHONPATH": str(distribution), "OTEL_PYTHON_CONTEXT": "otelbpf"}
    told: dict[str, str] = {}

    def ask(number: int) -> None:
        with Client.of(net, PORT) as client:
            for turn in range(EACH):
                path = f"/{number}/{turn}"
                told[path] = client.ask(path).body.decode()

    with (
        python_server(net, tmp_path, "publishing_server", PORT, environment=environment),
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            PORT,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        threads = [threading.Thread(target=ask, args=(number,)) for number in range(CONNECTIONS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        requests = wait_for_requests(receiver, CONNECTIONS * EACH)
        running.stop().assert_clean(CONNECTIONS * EACH)
    for request in requests:
        trace_id, span_id = told[request["url.path"]].split()
        assert request.span.trace_id == trace_id
        assert request.span.links == ((trace_id, span_id),)

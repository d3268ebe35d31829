# SPDX-License-Identifier: Apache-2.0
"""An application's server span is the child of the kernel's span of the very same request."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from client import Client
from demo.otlp import Kind, Span
from demo.processes import running
from demo.receiver import Receiver
from servers import Server, python_server
from stack import OTELBPF, Agent, agent, assert_nothing_left, kernel_ids, to
from support.namespaces import Network
from support.waiting import DEADLINE_S, wait_until

from otelbpf_plugin.watch import LINGER_S, QUIET_S

REQUESTS, CONNECTIONS = 1000, 50
#: The number of the request that wakes the plugin, and is not joined itself. Both keep it.
WAKING = 999_999
PORT = 8080
TRACE, CALLER = "4bf92f3577b34da6a3ce929d{:08x}", "00f067aa{:08x}"
APPLICATIONS = {
    "flask": ("flask_server",),
    "flask-gunicorn": ("gunicorn_server",),
    "django-wsgi": ("django_server", "wsgi"),
    "django-asgi": ("django_server", "asgi"),
    "fastapi": ("fastapi_server",),
    "aiohttp": ("aiohttp_server",),
    "granian": ("granian_server", "asgi", "::"),
}

each_application = pytest.mark.parametrize("application", APPLICATIONS.values(), ids=APPLICATIONS)


@pytest.fixture
def inside(net: Network) -> Iterator[Receiver]:
    """A receiver in the server's namespace, for the application and the agent."""
    with net.server.call(Receiver) as running:
        yield running


def serving(
    net: Network, directory: Path, receiver: Receiver, application: Sequence[str], **sampling: str
) -> contextlib.AbstractContextManager[Server]:
    """The application."""
    environment = {
        **to(receiver),
        **sampling,
        "OTEL_SERVICE_NAME": "application",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTEL_BSP_MAX_QUEUE_SIZE": "8192",
    }
    name, *arguments = application
    return python_server(net, directory, name, PORT, *arguments, environment=environment)


@contextlib.contextmanager
def measured(net: Network, directory: Path, receiver: Receiver) -> Iterator[Agent]:
    """The agent, ready. It never samples by itself: what it drops, the application did not want."""
    with agent(
        directory,
        "--interface",
        net.server.interface,
        "--port",
        PORT,
        "--service-name",
        "kernel",
        under=net.server.enter(),
        environment={**to(receiver), "OTEL_TRACES_SAMPLER": "always_on"},
    ) as measuring:
        yield measuring.wait_ready()


@contextlib.contextmanager
def topped(net: Network, directory: Path) -> Iterator[None]:
    """`otelbpf top`, attached."""
    command = [
        *net.server.enter(),
        OTELBPF,
        "top",
        "--interface",
        net.server.interface,
        "--port",
        str(PORT),
    ]
    with running("top", command, directory) as top:
        wait_until(
            lambda: "no requests yet" in top.stdout.read_text(), "top measures", state=top.said
        )
        yield


@contextlib.contextmanager
def silent(net: Network, directory: Path, **environment: str) -> Iterator[None]:
    """`otelbpf run` that exports no spans, attached."""
    with agent(
        directory, "--interface", net.server.interface, "--port", PORT,
        under=net.server.enter(), environment={"OTEL_TRACES_EXPORTER": "none", **environment},
    ) as measuring:  # fmt: skip
        measuring.wait_ready()
        yield


@contextlib.contextmanager
def plugged(
    net: Network,
    directory: Path,
    receiver: Receiver,
    application: Sequence[str],
    **sampling: str,
) -> Iterator[tuple[Server, Agent]]:
    """The application and the agent, both sending to `receiver`, and the plugin awake."""
    with (
        serving(net, directory, receiver, application, **sampling) as server,
        measured(net, directory, receiver) as measuring,
    ):
        with Client.of(net, PORT) as client:
            client.ask(f"/work/{WAKING}", headers={"traceparent": traceparent(WAKING, "01")})
        yield server, measuring


def traceparent(number: int, flags: str) -> str:
    return f"00-{TRACE.format(number)}-{CALLER.format(number)}-{flags}"


def request(number: int, flags: str | None) -> bytes:
    """A request for `/work/NUMBER`, through a proxy that says so; flags None: of no trace."""
    lines = [f"GET /work/{number} HTTP/1.1", "Host: server", "X-Forwarded-For: 203.0.113.7"]
    if flags is not None:
        lines.append(f"traceparent: {traceparent(number, flags)}")
    return "\r\n".join([*lines, "", ""]).encode()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int, flags: str | None
) -> bool:
    """Is the connection kept alive?"""
    writer.write(request(number, flags))
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    assert b" 200 ok" in head.splitlines()[0], head
    length = re.search(rb"content-length: (\d+)", head)
    assert length, head
    assert await reader.readexactly(int(length[1])) == str(number).encode()
    return b"connection: close" not in head


def ask_all(net: Network, flags: Sequence[str | None]) -> None:
    """Asks for `/work/N` with flags[N], over many connections at a time.

    They are kept alive, unless the server (werkzeug's) closes each after its answer.
    """

    async def over_one(index: int) -> None:
        numbers = iter(range(index, len(flags), CONNECTIONS))
        for number in numbers:
            sock = net.client.connect(net.server.ipv4, PORT)
            reader, writer = await asyncio.open_connection(sock=sock)
            while await _ask(reader, writer, number, flags[number]):
                number = next(numbers, None)
                if number is None:
                    break
            writer.close()
            await writer.wait_closed()

    async def over_all() -> None:
        async with asyncio.timeout(2 * DEADLINE_S):
            await asyncio.gather(*map(over_one, range(CONNECTIONS)))

    asyncio.run(over_all())


def by_number(receiver: Receiver, service: str) -> dict[int, Span]:
    """The server spans of one of the two, by the request's number; each has one, but WAKING."""
    spans = [
        span
        for span in receiver.spans()
        if span.kind is Kind.SERVER and span.resource["service.name"] == service
    ]
    if service == "kernel":
        numbers = [int(str(span.attributes["url.path"]).rpartition("/")[2]) for span in spans]
    else:
        numbers = [int(str(span.attributes["test.number"])) for span in spans]
    assert len(set(numbers)) == len(numbers), "a request has two spans"
    found = dict(zip(numbers, spans, strict=True))
    found.pop(WAKING, None)
    return found


def assert_joined(numbers: set[int], receiver: Receiver, flags: Sequence[str | None]) -> None:
    """Caller, kernel, application: for each request and no other."""
    kernel, application = by_number(receiver, "kernel"), by_number(receiver, "application")
    assert kernel.keys() == application.keys() == numbers
    for number in numbers:
        outer, inner = kernel[number], application[number]
        assert inner.parent_span_id == outer.span_id, (number, inner, outer)
        assert inner.trace_id == outer.trace_id, (number, inner, outer)
        called = flags[number] is not None
        assert outer.parent_span_id == (CALLER.format(number) if called else ""), number
        if called:
            assert outer.trace_id == TRACE.format(number), number
    assert len({span.trace_id for span in kernel.values()}) == len(numbers)


@each_application
def test_each_request_is_joined_to_its_own(
    net: Network, inside: Receiver, tmp_path: Path, application: Sequence[str]
) -> None:
    """1,000 that interleave on 50 connections, half of them with a caller."""
    flags = ["01" if number // CONNECTIONS % 2 else None for number in range(REQUESTS)]
    with plugged(net, tmp_path, inside, application) as (_, measuring):
        ask_all(net, flags)
        came = inside.wait_for(
            2 * (REQUESTS + 1), DEADLINE_S, lambda span: span.kind is Kind.SERVER
        )
        measuring.stop().assert_clean(seen=REQUESTS + 1)
    assert came, [len(by_number(inside, name)) for name in ("kernel", "application")]
    assert_joined(set(range(REQUESTS)), inside, flags)


@each_application
def test_both_keep_the_same_requests(
    net: Network, inside: Receiver, tmp_path: Path, application: Sequence[str]
) -> None:
    """The caller's flag decides, and the application where there is none; the kernel follows."""
    flags = [(None, "01", "00", None)[number // CONNECTIONS % 4] for number in range(400)]
    with plugged(
        net, tmp_path, inside, application,
        OTEL_TRACES_SAMPLER="parentbased_traceidratio", OTEL_TRACES_SAMPLER_ARG="0.5",
    ) as (_, measuring):  # fmt: skip
        ask_all(net, flags)
        ended = measuring.stop()
        exported = ended.sums["exported"] if ended.sums else 0
        # The agent has sent all of its own; then the application's must come.
        assert inside.wait_for(2 * exported, DEADLINE_S, lambda span: span.kind is Kind.SERVER)
    kept = set(by_number(inside, "kernel"))
    ended.assert_clean(seen=len(flags) + 1, sampled_out=len(flags) - len(kept))
    wanted = {flag: {n for n, each in enumerate(flags) if each == flag} for flag in set(flags)}
    assert kept >= wanted["01"]
    assert not kept & wanted["00"]
    # Of 200, one in two: all or none would be no sampling.
    assert 0 < len(kept & wanted[None]) < len(wanted[None])
    assert_joined(kept, inside, flags)


def test_what_cannot_be_joined_is_told_once(net: Network, inside: Receiver, tmp_path: Path) -> None:
    """Of WSGI, granian tells the application neither the socket nor the client's port."""
    application = ("granian_server", "wsgi", "::")
    with (
        serving(net, tmp_path, inside, application) as server,
        measured(net, tmp_path, inside) as measuring,
    ):
        asked = ask_one_by_one(net, inside)
        measuring.stop().assert_clean(seen=21)
        said = server.process.stderr.read_text()
    assert {span.parent_span_id for span in asked.values()} == {""}
    (told,) = (line for line in said.splitlines() if "does not join requests" in line)
    assert "gunicorn or waitress" in told


@pytest.mark.parametrize("application", ["flask", "fastapi"])
def test_agents_come_and_go(
    net: Network, inside: Receiver, tmp_path: Path, application: str
) -> None:
    """While the application runs: requests are joined within a second or so, and none breaks."""
    numbers = itertools.count()

    def ask() -> tuple[int, Span]:
        """One more request; its number, and the application's span of it."""
        number = next(numbers)
        with Client.of(net, PORT) as client:
            exchange = client.ask(f"/work/{number}")
        assert (exchange.status, exchange.body) == (200, str(number).encode())
        wait_until(lambda: number in by_number(inside, "application"), "its span has come")
        return number, by_number(inside, "application")[number]

    with serving(net, tmp_path, inside, APPLICATIONS[application]):
        # The second agent finds the plugin awake still, the third one asleep again.
        for alone_s in (0.0, LINGER_S + 2 * QUIET_S, 0.0):
            with measured(net, tmp_path, inside) as measuring:
                asked, ready = {}, time.monotonic()
                while not asked or not asked[max(asked)].parent_span_id:
                    assert time.monotonic() < ready + 2 * QUIET_S, "nothing is joined"
                    asked.update([ask()])
                joined = dict(ask() for _ in range(23))
                measuring.stop().assert_clean(seen=len(asked) + len(joined))
            kernel = by_number(inside, "kernel")
            parents = {number: span.parent_span_id for number, span in joined.items()}
            assert parents == {number: kernel[number].span_id for number in joined}
            ended = time.monotonic()
            without = [ask()[1] for _ in range(23)]
            while time.monotonic() < ended + alone_s:
                without.append(ask()[1])
            assert {span.parent_span_id for span in without} == {""}


def ask_one_by_one(net: Network, receiver: Receiver) -> dict[int, Span]:
    """21 requests, of which the first one wakes the plugin; the application's spans of the rest."""
    with Client.of(net, PORT) as client:
        for number in (WAKING, *range(20)):
            client.ask(f"/work/{number}")
    wait_until(lambda: len(by_number(receiver, "application")) == 20, "their spans have come")
    return by_number(receiver, "application")


@pytest.mark.parametrize(
    "silent_agent",
    [topped, silent, functools.partial(silent, OTEL_METRICS_EXPORTER="prometheus")],
    ids=["top", "run", "run with metrics"],
)
def test_beside_an_agent_that_sends_no_spans_no_trace_falls_apart(
    net: Network,
    inside: Receiver,
    tmp_path: Path,
    silent_agent: Callable[[Network, Path], contextlib.AbstractContextManager[None]],
) -> None:
    with (
        serving(net, tmp_path, inside, APPLICATIONS["fastapi"]),
        silent_agent(net, tmp_path),
    ):
        asked = ask_one_by_one(net, inside)
    sent = {span.span_id for span in inside.spans()}
    assert {n for n, span in asked.items() if span.parent_span_id not in {"", *sent}} == set()


@pytest.mark.parametrize("first", ["top", "run"])
def test_beside_top_an_agent_that_sends_spans_is_asked(
    net: Network, inside: Receiver, tmp_path: Path, first: str
) -> None:
    with contextlib.ExitStack() as stack:
        stack.enter_context(serving(net, tmp_path, inside, APPLICATIONS["fastapi"]))
        if first == "top":
            stack.enter_context(topped(net, tmp_path))
        measuring = stack.enter_context(measured(net, tmp_path, inside))
        if first == "run":
            stack.enter_context(topped(net, tmp_path))
        asked = ask_one_by_one(net, inside)
        measuring.stop().assert_clean(seen=21)
    kernel = by_number(inside, "kernel")
    parents = {number: span.parent_span_id for number, span in asked.items()}
    assert parents == {number: kernel[number].span_id for number in range(20)}


def children_of(pid: int) -> list[int]:
    """Their process ids."""
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{pid}\n" in path.read_text():
                found.append(int(path.parent.name))
    return found


def test_the_application_brings_its_own_agent(
    net: Network, inside: Receiver, tmp_path: Path
) -> None:
    """OTELBPF_AGENT=auto. Killed, it takes the agent along, and that its programs."""
    environment = {
        **to(inside),
        "OTEL_SERVICE_NAME": "both",
        "OTEL_BSP_SCHEDULE_DELAY": "50",
        "OTELBPF_AGENT": "auto",
        "OTELBPF_INTERFACE": net.server.interface,
        "OTELBPF_PORT": str(PORT),
        "PATH": f"{OTELBPF.parent}:{os.environ['PATH']}",
    }

    def joined() -> bool:
        with Client.of(net, PORT) as client:
            client.ask("/work/1")
        spans = inside.spans()
        ids = {span.span_id for span in spans if "url.path" in span.attributes}
        return any(s.parent_span_id in ids for s in spans if "test.number" in s.attributes)

    with python_server(net, tmp_path, "fastapi_server", PORT, environment=environment) as server:
        (child,) = children_of(server.pid)
        wait_until(joined, "a request has both spans", state=server.process.said)
        left = kernel_ids(child)
        assert left.programs
        server.process.popen.kill()
        assert_nothing_left(left)
        wait_until(lambda: not Path(f"/proc/{child}").exists(), "the agent has ended")

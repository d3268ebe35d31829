# SPDX-License-Identifier: Apache-2.0
"""What the spans say, beside what tcpdump, wrk and an injected wait say."""

from __future__ import annotations

import re
import statistics
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from client import Client
from demo.processes import running as running_process
from demo.receiver import Receiver
from servers import Server, nginx, python_server
from stack import COUNT, Measured, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import DEADLINE_S, wait_until

WAIT_NS = 200_000_000
#: Between our stamp and tcpdump's of the same packet lie a few functions. A busy machine may
#: interrupt between them, but not each time.
USUAL_NS = 1_000_000
LONGEST_NS = 50_000_000
_LINE = re.compile(
    r"(?P<s>\d+)\.(?P<ns>\d{9}) .* (?P<from>\S+) > (?P<to>\S+): Flags .* seq (?P<start>\d+):\d+,"
    r".* length (?P<length>\d+)"
)


@dataclass(frozen=True)
class Segment:
    """A segment with payload, as tcpdump printed it."""

    unix_ns: int
    source_port: int
    length: int


def segments(text: str) -> list[Segment]:
    return [
        Segment(
            int(match["s"]) * 1_000_000_000 + int(match["ns"]),
            int(match["from"].rpartition(".")[2]),
            int(match["length"]),
        )
        for match in map(_LINE.search, text.splitlines())
        if match
    ]


def test_stamps_are_those_of_tcpdump(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """On the same interface, and by the same clock: that of the wall."""
    tcpdump = [
        *net.server.enter(),
        "tcpdump",
        "-i",
        net.server.interface,
        "-nn",
        "-tt",
        "--time-stamp-precision=nano",
        "-U",
        "-l",
        f"tcp port {server.port}",
    ]
    with (
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running,
        running_process("tcpdump", tcpdump, tmp_path) as capture,
    ):
        running.wait_ready()
        wait_until(lambda: "listening on" in capture.stderr.read_text(), "tcpdump listens")
        with Client.of(net, server.port) as client:
            exchanges = [client.ask(f"/{number}") for number in range(COUNT)]
        requests = wait_for_requests(receiver, COUNT)
        wait_until(
            lambda: len(segments(capture.stdout.read_text())) == 2 * COUNT,
            "tcpdump has shown all segments",
            state=capture.stdout.read_text,
        )
        running.stop().assert_clean(seen=COUNT)

    shown = segments(capture.stdout.read_text())
    inbound = [each for each in shown if each.source_port != server.port]
    outbound = [each for each in shown if each.source_port == server.port]
    assert [each.length for each in inbound] == [each.request_bytes for each in exchanges]
    assert [each.length for each in outbound] == [each.response_bytes for each in exchanges]
    differences = {
        stamp: [
            abs(request.stamp_unix_ns(stamp) - segment.unix_ns)
            for request, segment in zip(requests, seen, strict=True)
        ]
        for stamp, seen in (("nic", inbound), ("tc", inbound), ("tc_out", outbound))
    }
    for stamp, each in differences.items():
        assert statistics.median(each) < USUAL_NS, (stamp, each)
        assert max(each) < LONGEST_NS, (stamp, each)
    # Between a request's arrival and its response's departure lies all that the server did.
    for request, arrived, left in zip(requests, inbound, outbound, strict=True):
        assert arrived.unix_ns - LONGEST_NS < request.stamp_unix_ns("read")
        assert request.stamp_unix_ns("write") < left.unix_ns + LONGEST_NS


def longest(request: Measured) -> tuple[str, int]:
    return max(
        ((name, request.stage_ns(name)) for name in request.stage_names), key=lambda each: each[1]
    )


def test_a_reader_that_is_late_shows_before_the_read_and_nowhere_else(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """The one loop of the server is held for 200 ms while the other client's request comes."""
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
        with Client.of(net, server.port) as holding, Client.of(net, server.port) as held:
            held.ask("/warm")
            for number in range(5):
                # Its answer comes before the wait.
                holding.ask("/wait/200")
                held.ask(f"/held/{number}")
        requests = wait_for_requests(receiver, 11)
        running.stop().assert_clean(seen=11)
    late = [each for each in requests if each["url.path"].startswith("/held/")]
    assert len(late) == 5
    for request in late:
        before_read = sum(
            request.stage_ns(name)
            for name in request.stage_names
            if name
            in (
                "queued_to_read",
                "queued_to_running",
                "queued_to_woken",
                "woken_to_running",
                "running_to_read",
                "woken_to_read",
            )
        )
        whole = request.span.end_unix_ns - request.span.start_unix_ns
        # Of the wait, the request missed a little; the rest of its way took far less.
        assert before_read > WAIT_NS / 2, request.stage_names
        assert whole - before_read < WAIT_NS / 2
        assert longest(request)[0] in ("queued_to_read", "queued_to_running")
    for request in requests:
        request.assert_tiled()
        request.assert_complete()


def test_a_handler_that_is_slow_shows_between_read_and_write_and_nowhere_else(
    net: Network, receiver: Receiver, tmp_path: Path
) -> None:
    """nginx waits for an upstream that is held for 200 ms."""
    with (
        python_server(net, tmp_path, "asyncio_server", 9090) as behind,
        nginx(net, tmp_path, 8090, upstream=behind.port),
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            8090,
            "--netns",
            net.server.netns,
            environment=to(receiver),
        ) as running,
    ):
        running.wait_ready()
        with Client.of(net, 8090) as client, Client.local(net, behind.port) as holding:
            client.ask("/warm")
            for number in range(5):
                holding.ask("/wait/200")
                client.ask(f"/slow/{number}")
        requests = wait_for_requests(receiver, 6)
        running.stop().assert_clean(seen=6)
    for request in requests[1:]:
        whole = request.span.end_unix_ns - request.span.start_unix_ns
        slow = request.stage_ns("read_to_write")
        assert slow > WAIT_NS / 2, request.stage_names
        assert whole - slow < WAIT_NS / 2


def wrk(net: Network, port: int, *options: str) -> tuple[int, str]:
    """wrk's own count of completed requests, and all that it said."""
    done = subprocess.run(
        [*net.client.enter(), "wrk", *options, f"http://{net.server.ipv4}:{port}/"],
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    match = re.search(r"(\d+) requests in", done.stdout)
    assert match, done.stdout
    assert "Socket errors" not in done.stdout and "Non-2xx" not in done.stdout, done.stdout
    return int(match[1]), done.stdout


@pytest.mark.parametrize("kind", ["one process", "nginx"])
def test_at_saturation_every_request_is_accounted_for(
    net: Network, receiver: Receiver, tmp_path: Path, kind: str
) -> None:
    """One in a hundred kept; wrk leaves at most one request a connection unfinished."""
    connections = 8
    if kind == "nginx":
        (tmp_path / "files").mkdir()
        (tmp_path / "files/index.html").write_text("Hello")
        starting = nginx(net, tmp_path, 8091)
    else:
        starting = python_server(net, tmp_path, "fast_server", 8091)
    environment = {
        **to(receiver),
        "OTEL_TRACES_SAMPLER": "traceidratio",
        "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }
    with (
        starting as server,
        agent(
            tmp_path,
            "--interface",
            net.server.interface,
            "--port",
            server.port,
            "--netns",
            net.server.netns,
            environment=environment,
        ) as running,
    ):
        running.wait_ready()
        completed, said = wrk(net, server.port, "-t1", f"-c{connections}", "-d3s")
        ended = running.stop()
    sums = ended.sums
    assert ended.code == 0, ended.stderr
    assert completed > 100 * COUNT, said
    assert completed <= sums["seen"] <= completed + connections, (said, sums)
    assert sums["lost"] == {}, sums
    ended.assert_adds_up()
    assert sums["seen"] == sums["exported"] + sums["sampled_out"]
    kept = [span for span in receiver.spans() if not span.parent_span_id]
    assert len(kept) == sums["exported"]
    # 1 in 100, by five of its standard deviations.
    expected = completed / 100
    assert abs(sums["exported"] - expected) < 5 * expected**0.5 + 1

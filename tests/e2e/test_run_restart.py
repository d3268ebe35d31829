# SPDX-License-Identifier: Apache-2.0
"""What a restart of the agent misses, to the request: the server's log, and what each agent told.

A client asks all the time, on one connection that is older than both agents.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from demo.receiver import Receiver
from servers import Server, python_server
from stack import COUNT, Ended, agent, measured, to
from support.namespaces import Network
from support.waiting import wait_until

#: Exchanges on a connection older than the agent, before one is told.
UNKNOWN = 2


class Steady:
    """A client that asks for /0, /1, /2 …, one after the other.

    Attributes:
        began_s: when each request was sent, on the monotonic clock; the last one may be in flight.
        ended_s: when each response was there.
    """

    def __init__(self, client: Client) -> None:
        self.began_s: list[float] = []
        self.ended_s: list[float] = []
        self._client = client
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Steady:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Asks no more; the last response is there."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(0.001):
            self.began_s.append(time.monotonic())
            assert self._client.ask(f"/{len(self.ended_s)}").status == 200
            self.ended_s.append(time.monotonic())

    def wait_for_more(self) -> None:
        """Waits until it has asked for a good many more."""
        enough = len(self.ended_s) + COUNT
        wait_until(lambda: len(self.ended_s) >= enough, "requests go on")

    def ended_before(self, moment_s: float) -> set[int]:
        """Those that were over then."""
        return {number for number, end_s in enumerate(self.ended_s) if end_s < moment_s}

    def began_after(self, moment_s: float) -> set[int]:
        """Those that were sent since, but for the first ones: by them it becomes certain where one
        begins."""
        since = [number for number, began_s in enumerate(self.began_s) if began_s > moment_s]
        return set(since[UNKNOWN:])


@pytest.fixture
def logged(net: Network, tmp_path: Path) -> Iterator[Server]:
    """A server that says what it was asked for."""
    with python_server(net, tmp_path, "asyncio_server", 8090, "--log") as server:
        yield server


def log_of(server: Server) -> list[str]:
    return server.process.stdout.read_text().splitlines()


def told_to(receiver: Receiver) -> set[int]:
    """The requests whose spans came."""
    return {int(each["url.path"].removeprefix("/")) for each in measured(receiver.spans())}


def options(net: Network, server: Server) -> tuple[str | int, ...]:
    return "--interface", net.server.interface, "--port", server.port, "--netns", net.server.netns


def assert_adopted(ended: Ended, spans: set[int], in_flight: int = 0) -> None:
    """It took up the connections that were there, and told all it saw but what was in flight.

    Args:
        spans: requests of the steady client, who may have one more in flight.
        in_flight: requests of others, on a connection each.
    """
    count = ended.sums["lost"].get("unanswered_at_stop", 0)
    assert count in (in_flight, in_flight + 1)
    assert ended.sums["connections"]["adopted"] == 1 + in_flight
    uncertain = ended.sums["segments"]["uncertain"]
    assert 0 < uncertain <= UNKNOWN
    assert f"otelbpf: {uncertain} segment" in ended.stderr
    ended.assert_clean(len(spans) + count, {"unanswered_at_stop": count} if count else None)


def test_one_after_the_other(net: Network, logged: Server, tmp_path: Path) -> None:
    """Those between are missed, and no others: they were sent or answered while nobody measured.

    One that is in flight all the time is lost by the first agent, and unknown to the second.
    """
    first_told, second_told = Receiver(), Receiver()
    slow = net.client.connect(net.server.ipv4, logged.port)
    with (
        first_told, second_told, slow, Client.of(net, logged.port) as client,
        Steady(client) as steady,
    ):  # fmt: skip
        steady.wait_for_more()
        with agent(tmp_path, *options(net, logged), environment=to(first_told)) as first:
            first.wait_ready()
            first_ready_s = time.monotonic()
            steady.wait_for_more()
            slow.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
            wait_until(lambda: "/never" in log_of(logged), "it is in flight")
            stop_s = time.monotonic()
            first_ended = first.stop(signal.SIGTERM)
            stopped_s = time.monotonic()
        with agent(tmp_path, *options(net, logged), environment=to(second_told)) as second:
            second.wait_ready()
            second_ready_s = time.monotonic()
            steady.wait_for_more()
            steady.stop()
            second_ended = second.stop()
    by_first, by_second = told_to(first_told), told_to(second_told)
    assert_adopted(first_ended, by_first, in_flight=1)
    assert_adopted(second_ended, by_second)

    log = [int(path.removeprefix("/")) for path in log_of(logged) if path != "/never"]
    assert log == list(range(len(steady.ended_s)))
    before = set(range(min(by_first)))
    between = set(range(max(by_first) + 1, min(by_second)))
    # Each request is one agent's, or was before the first or between the two.
    assert sorted([*before, *by_first, *between, *by_second]) == log
    assert by_first >= steady.began_after(first_ready_s) & steady.ended_before(stop_s)
    assert by_second >= steady.began_after(second_ready_s)
    assert not between & (steady.ended_before(stop_s) | steady.began_after(second_ready_s))
    assert between
    print(
        f"of {len(log)} requests {len(before)} came before the first agent, which told of "
        f"{len(by_first)}; {len(between)} came between, in {stopped_s - stop_s:.1f} s of "
        f"stopping and {second_ready_s - stopped_s:.1f} s of starting; the second told of "
        f"{len(by_second)}"
    )


def test_the_new_one_before_the_old_one_ends(net: Network, logged: Server, tmp_path: Path) -> None:
    """None is missed but the first ones, and those that both measure are told twice."""
    first_told, second_told = Receiver(), Receiver()
    with (
        first_told, second_told, Client.of(net, logged.port) as client, Steady(client) as steady,
        agent(tmp_path, *options(net, logged), environment=to(first_told)) as first,
    ):  # fmt: skip
        first.wait_ready()
        first_ready_s = time.monotonic()
        with agent(
            tmp_path, *options(net, logged), "--xdp", "auto", environment=to(second_told)
        ) as second:
            second.wait_ready()
            second_ready_s = time.monotonic()
            steady.wait_for_more()
            stop_s = time.monotonic()
            first_ended = first.stop(signal.SIGTERM)
            steady.wait_for_more()
            steady.stop()
            # The slot of XDP was the first one's.
            assert net.server.xdp_program() is None
            second_ended = second.stop()
    by_first, by_second = told_to(first_told), told_to(second_told)
    assert_adopted(first_ended, by_first)
    assert_adopted(second_ended, by_second)
    assert by_first | by_second >= steady.began_after(first_ready_s)
    both = steady.began_after(second_ready_s) & steady.ended_before(stop_s)
    assert len(both) >= COUNT - 2 - UNKNOWN
    assert by_first & by_second >= both

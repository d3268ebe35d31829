# SPDX-License-Identifier: Apache-2.0
"""What becomes of requests while what takes their spans fails: one run for each fault.

    .venv/bin/python bench/faults.py

asks a server at a steady rate on one keep-alive connection. An agent sends each request as a span,
over gRPC to a receiver or into a file. Each run's end is compared: what was asked, what the agent
says became of it, and what is there.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cost import asyncio_server
from demo.receiver import Behaviour, Receiver
from measure import PORT, Network, agent, served

RATE = 500
# Small, so that what overflows does so within seconds.
QUEUE = 2_000
_ONE_SPAN = ("--stages", "attributes")
_ASKED = b"GET /item HTTP/1.1\r\nHost: server\r\n\r\n"
# Of the tmpfs: some seconds of lines, and then all of them.
_SMALL, _LARGE = "2m", "64m"

Middle = contextlib.AbstractContextManager[None]


@dataclass(frozen=True)
class Outcome:
    """Of one run.

    Attributes:
        sums: the agent's.
        there: how many spans arrived, or are in the file.
        tries: exports that the receiver saw; None: there was none.
        told: what the agent said of it.
    """

    asked: int
    sums: dict[str, Any]
    there: int
    tries: int | None
    told: list[str]


def ask(net: Network, seconds: float) -> int:
    """How many were answered: all."""
    pause_s, count = 1 / RATE, round(RATE * seconds)
    with net.client.call(lambda: socket.create_connection((net.server.ipv4, PORT))) as sock:
        due_s = time.monotonic()
        for _ in range(count):
            sock.sendall(_ASKED)
            if not sock.recv(4_096):
                raise ConnectionError("the server has closed the connection")
            due_s += pause_s
            time.sleep(max(0.0, due_s - time.monotonic()))
    return count


def told(stderr: Path) -> list[str]:
    """The lines that are not about the start and the end."""
    lines = [line.removeprefix("otelbpf: ") for line in stderr.read_text().splitlines()]
    start = next(at for at, line in enumerate(lines) if line.startswith("keeps "))
    return [line for line in lines[start + 1 : -1] if not line.startswith(("spans", "metrics"))]


def to_a_receiver(net: Network, seconds: float, middle: Callable[[Receiver], Middle]) -> Outcome:
    """A third of the time all is well, a third there is the fault, a third all may be well."""
    with (
        Receiver() as receiver,
        agent(
            net,
            PORT,
            *_ONE_SPAN,
            OTEL_TRACES_EXPORTER="otlp",
            OTEL_BSP_MAX_QUEUE_SIZE=str(QUEUE),
            OTEL_EXPORTER_OTLP_ENDPOINT=receiver.grpc_endpoint,
            OTEL_BSP_SCHEDULE_DELAY="500",
        ) as running,
    ):
        asked = ask(net, seconds / 3)
        with middle(receiver):
            asked += ask(net, seconds / 3)
        asked += ask(net, seconds / 3)
        sums = running.stop()
        spans = Counter(span.span_id for span in receiver.spans())
        if spans and max(spans.values()) > 1:
            print("  (some arrived twice)")
        return Outcome(asked, sums, len(spans), receiver.arrived, told(running.process.stderr))


def behaving(behaviour: Behaviour) -> Callable[[Receiver], Middle]:
    """The receiver treats exports so, and then well again."""

    @contextlib.contextmanager
    def middle(receiver: Receiver) -> Iterator[None]:
        receiver.behave(behaviour)
        yield
        receiver.behave(Behaviour())

    return middle


@contextlib.contextmanager
def for_good(receiver: Receiver) -> Iterator[None]:
    """It does not take anything any more."""
    receiver.behave(Behaviour(refuse=True))
    yield


def into_a_file(net: Network, seconds: float) -> Outcome:
    """The disk is full for a while."""
    with tempfile.TemporaryDirectory() as name:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL}", "tmpfs", name], check=True)
        try:
            file = Path(name, "spans.jsonl")
            with agent(
                net,
                PORT,
                *_ONE_SPAN,
                "--output",
                str(file),
                OTEL_TRACES_EXPORTER="otlp_json_file",
                OTEL_BSP_SCHEDULE_DELAY="500",
            ) as running:
                asked = ask(net, seconds * 2 / 3)
                subprocess.run(["mount", "-o", f"remount,size={_LARGE}", name], check=True)
                asked += ask(net, seconds / 3)
                sums = running.stop()
                said = told(running.process.stderr)
            there = file.read_text().count('"kind":2')
        finally:
            subprocess.run(["umount", name], check=True)
    return Outcome(asked, sums, there, None, said)


RUNS: dict[str, Callable[[Network, float], Outcome]] = {
    "none": lambda net, s: to_a_receiver(net, s, behaving(Behaviour())),
    "the collector is away for a while": lambda net, s: to_a_receiver(
        net, s, behaving(Behaviour(refuse=True))
    ),
    "the collector does not come back": lambda net, s: to_a_receiver(net, s, for_good),
    "the collector refuses all for a while": lambda net, s: to_a_receiver(
        net, s, behaving(Behaviour(refuse=True, retryable=False))
    ),
    "the collector takes 2 s for each export": lambda net, s: to_a_receiver(
        net, s, behaving(Behaviour(delay_s=2))
    ),
    "the disk is full for a while": into_a_file,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=24, help="of each run (default: 24)")
    seconds = parser.parse_args().seconds
    print(
        f"kernel {platform.release()}, {os.cpu_count()} processors; {RATE} requests a second for "
        f"{seconds} s, the fault in the second third; a queue of {QUEUE}, but for the file\n"
    )
    print(f"{'fault':<40} {'asked':>6} {'seen':>6} {'exported':>8} {'there':>6} {'tries':>5}  lost")
    for name, run in RUNS.items():
        with served(asyncio_server) as net:
            outcome = run(net, seconds)
        sums = outcome.sums
        lost = ", ".join(f"{reason} {count}" for reason, count in sums["lost"].items()) or "none"
        tries = "" if outcome.tries is None else outcome.tries
        print(
            f"{name:<40} {outcome.asked:>6} {sums['seen']:>6} {sums['exported']:>8} "
            f"{outcome.there:>6} {tries:>5}  {lost}"
        )
        for line in outcome.told:
            print(f"    {line}")
        sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())

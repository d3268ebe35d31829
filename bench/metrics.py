# SPDX-License-Identifier: Apache-2.0
"""What metrics cost the agent, and for how long they hold up its loop.

    .venv/bin/python bench/metrics.py [--series 50 1000] [--agent]

A table of so many series, each with all stages, is exported over OTLP and scraped by Prometheus:
from the kernel's sums, which are made up, to the bytes, by the agent's own code. Processor time is
the whole process's. Then once more beside a loop that does what the agent does in each turn: it
adds requests to the table, and then has nothing to do for a while. Its longest turn is from when it
was due to when it was done. Needs no root.

With --agent, as root, a real one under 5,000 requests a second of so many routes: the longest time
that passes between two messages of spans, while nobody asks for metrics and while they are scraped
or exported all the time.
"""

from __future__ import annotations

import argparse
import contextlib
import mmap
import os
import platform
import resource
import socket
import statistics
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any

import numpy as np

from otelbpf.export.answers import Answer, Verdict
from otelbpf.export.metrics import MetricsExport, Periodic, Schedule, metrics_export
from otelbpf.export.prometheus_text import texts
from otelbpf.export.ways_out import WayOut, metrics_way_out
from otelbpf.host.resource import Resources
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.records import (
    REQUEST_RECORD,
    SERIES,
    SERIES_SET,
    STAGE_ORDER,
    FixedLength,
    RequestFlag,
    Stamp,
)
from otelbpf.kernel.series_rows import SeriesRows
from otelbpf.ledger.request import KINDS
from otelbpf.ledger.tally import Sums
from otelbpf.metrics.instruments import MetricStyle, metrics_of
from otelbpf.metrics.points import HistogramStyle
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.snapshot import BUCKETS, Snapshot
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Slow

if TYPE_CHECKING:
    from support.namespaces import Network

ROUNDS = 5
# As often as the agent looks at its ring at the most, and as many records as are not yet in series.
_PAUSE_S, _A_TURN = 0.05, 20
_LOOP_S = 3.0
_RATE, _WARM_UP_S = 5_000, 3.0
_BEGAN_KTIME_NS = 5_000_000_000_000
# In the order in which a request that is read and answered in several pieces passes them.
_STAMPS = (
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.WOKEN, Stamp.RUNNING, Stamp.READ,
    Stamp.HANDLER_START, Stamp.HANDLER_END, Stamp.WRITE, Stamp.TC_OUT, Stamp.WRITE_LAST,
    Stamp.TC_OUT_LAST, Stamp.ACKED,
)  # fmt: skip
_SCRAPER = {
    "Accept": "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
    "Accept-Encoding": "gzip",
}


class Kernel:
    """The kernel's part of the table: its maps, in memory."""

    def __init__(self, series: int) -> None:
        self.limits = Limits(series=series + len(KINDS))
        self.series_rows = SeriesRows(self.limits.series)
        sizes = {
            "series": self.limits.series * SERIES.itemsize,
            "stage_orders": FixedLength.STAGE_ORDERS * STAGE_ORDER.itemsize,
            "series_sets": FixedLength.SERIES_SETS * SERIES_SET.itemsize,
        }
        self._files = {name: os.memfd_create(name) for name in sizes}
        for name, size in sizes.items():
            os.ftruncate(self._files[name], size)
        self._sums = mmap.mmap(self._files["series"], sizes["series"])

    def map_fd(self, name: str) -> int:
        return self._files[name]

    def set_overflow_place(self, is_client: int, place: bytes) -> None:
        """Has nobody to tell."""

    def wait_for_running(self) -> None:
        """Has nobody to wait for."""

    def fill(self, stages: int) -> None:
        """Requests of all lengths, from 1 µs to 1 s, in every series but the overflows."""
        chance = np.random.default_rng(1)
        sums = np.frombuffer(self._sums, SERIES)[len(KINDS) :]
        lengths = np.arange(BUCKETS)
        likely = (lengths > 24) & (lengths < 184)
        for series in sums:
            some = [series["duration"], series["acked"], *series["stages"][1 : stages + 1]]
            for histogram in some:
                histogram["counts"] = chance.poisson(20, BUCKETS) * likely
                histogram["sum_ns"] = chance.integers(1 << 40)
            series["request_bytes"] = series["response_bytes"] = chance.integers(1 << 40)


def requests(count: int) -> np.ndarray:
    """Answered ones, each of another route."""
    made = np.zeros(count, REQUEST_RECORD)
    for after, stamp in enumerate(_STAMPS):
        made["stamp_ktime_ns"][:, stamp] = _BEGAN_KTIME_NS + 10_000 * after
    made["flags"] = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
    made["status"], made["local_port"] = 200, 8080
    made["route_hash"] = np.arange(1, count + 1)
    for row in range(count):
        line = f"GET {path_of(row)} HTTP/1.1".encode()
        made["http1"]["request_line"][row] = line
        made["http1"]["request_line_length"][row] = len(line)
    return made


class Table:
    """So many series, and what a snapshot has besides."""

    def __init__(self, series: int) -> None:
        kernel = Kernel(series)
        self._resources = Resources("shop")
        self.table = SeriesTable(kernel, Routes((), series), self._resources, Slow())  # type: ignore[arg-type]
        self.records = requests(series)
        self.table.add(self.records)
        kernel.fill(len(_STAMPS) - 2)
        assert len(self.table.snapshot()) == series

    def snapshot(self) -> Snapshot:
        return Snapshot(
            1, time.time_ns(), self._resources.of_agent(), self.table.snapshot(), (),
            Sums(0, 0, 0, {}, {}, {}, {}, {}),
        )  # fmt: skip


@dataclass
class Swallow:
    """A door that takes all."""

    octets: int = 0
    messages: int = 0

    def send(self, told: bytes, within_s: float) -> Answer:
        self.octets += len(told)
        self.messages += 1
        return Answer(Verdict.TAKEN)

    def close(self) -> None:
        """Has nothing to close."""


@dataclass
class Loop:
    """Turns of the agent's loop, in a thread of their own.

    Attributes:
        longest_s: from when a turn was due to when it was done.
    """

    of: Table
    longest_s: float = 0.0
    _stopping: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Loop:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        housekeeping_s = time.monotonic()
        while not self._stopping.is_set():
            due_s = time.monotonic() + _PAUSE_S
            time.sleep(_PAUSE_S)
            self.of.table.add(self.of.records[:_A_TURN])
            if due_s > housekeeping_s:
                self.of.table.refresh(time.monotonic())
                housekeeping_s = due_s + 1.0
            self.longest_s = max(self.longest_s, time.monotonic() - due_s)


def export(of: Table, style: HistogramStyle) -> str:
    """Over OTLP, once; tells how large that was."""
    made = metrics_way_out("otlp_proto_http", "the collector", 10.0, {})
    door = Swallow()
    way_out: WayOut[Any] = WayOut(made.form, door, made.whose, made.most)
    periodic = Periodic(way_out, MetricStyle(style), Schedule(), "nowhere")
    periodic.start(of.snapshot)
    # Which exports for the last time, and so for the first.
    periodic.stop()
    made.door.close()
    return f"{door.octets / 1e6:.1f} MB in {door.messages} messages"


def scrape(of: Table) -> str:
    """By Prometheus, once."""
    port = _unused_port()
    exporting: MetricsExport = metrics_export(_scraped_at(port))
    exporting.start(of.snapshot)
    octets = _fetch(port)
    exporting.stop()
    return f"{octets / 1e6:.1f} MB of gzip"


def measured(of: Table, once: Callable[[], str]) -> str:
    """Its processor time and size, and the longest turn of a loop beside it."""
    size = once()
    used_s, took_s = [], []
    for _ in range(ROUNDS):
        before_s, began_s = time.process_time(), time.monotonic()
        once()
        used_s.append(time.process_time() - before_s)
        took_s.append(time.monotonic() - began_s)
    with Loop(of) as loop:
        until_s = time.monotonic() + _LOOP_S
        while time.monotonic() < until_s:
            once()
    return (
        f"{statistics.median(used_s):5.2f} s of a processor, median of {ROUNDS} "
        f"({min(used_s):.2f} to {max(used_s):.2f}), {statistics.median(took_s):5.2f} s in all; "
        f"longest turn {loop.longest_s * 1e3:4.0f} ms; {size}"
    )


def path_of(number: int) -> str:
    """Another route for each number."""
    letters = "".join(ascii_lowercase[number // 26**place % 26] for place in range(3))
    return f"/shop/{letters}/items"


def beside_a_load(series: int, seconds: float) -> None:
    """A real agent's spans, while its metrics are asked for."""
    from cost import asyncio_server
    from measure import served

    port = _unused_port()
    ways = {
        "nothing": _exported_each(3_600),
        "OTLP each second": _exported_each(1),
        "Prometheus": _scraped_at(port),
    }
    with served(asyncio_server) as net:
        for name, environment in ways.items():
            took_s: list[float] = []
            scraping = _scraping(port, took_s) if name == "Prometheus" else contextlib.nullcontext()
            print(f"  {name:<17}{_loaded(net, series, seconds, environment, scraping)}", end="")
            scrapes = f"; {len(took_s)} scrapes, of up to {max(took_s):.2f} s" if took_s else ""
            print(scrapes, flush=True)


def _loaded(
    net: Network, series: int, seconds: float, environment: dict[str, str],
    meanwhile: AbstractContextManager[None],
) -> str:  # fmt: skip
    from export import ask, receiver
    from measure import PORT, agent

    came_s: list[float] = []
    options = ("--series", str(series + len(KINDS)))
    with (
        receiver("grpc", on_spans=lambda: came_s.append(time.monotonic())) as variables,
        agent(net, PORT, *options, **variables, **environment) as running,
    ):
        ask(net, _RATE, _WARM_UP_S, lambda count: path_of(count % series))
        came_s.clear()
        used_s = running.processor_s()
        with meanwhile:
            requests = ask(net, _RATE, seconds, lambda count: path_of(count % series))
        used_s = running.processor_s() - used_s
        gaps_ms = np.diff(came_s) * 1e3
        sums = running.stop()
    return (
        f"{used_s / requests * 1e6:5.1f} us a request; messages of spans come each "
        f"{np.median(gaps_ms):.0f} ms, at most {gaps_ms.max():.0f} ms apart; lost {sums['lost']}"
    )


def _exported_each(seconds: int) -> dict[str, str]:
    return {
        "OTEL_METRICS_EXPORTER": "otlp", "OTEL_METRIC_EXPORT_INTERVAL": str(seconds * 1_000),
    }  # fmt: skip


@contextlib.contextmanager
def _scraping(port: int, took_s: list[float]) -> Iterator[None]:
    """Scrapes again and again; tells how long each took that was made anew."""
    stopping = threading.Event()

    def run() -> None:
        while not stopping.wait(_PAUSE_S):
            began_s = time.monotonic()
            _fetch(port)
            took_s.append(time.monotonic() - began_s)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()


def _unused_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _scraped_at(port: int) -> dict[str, str]:
    return {
        "OTEL_METRICS_EXPORTER": "prometheus", "OTEL_EXPORTER_PROMETHEUS_PORT": str(port),
        "OTEL_EXPORTER_PROMETHEUS_HOST": "127.0.0.1",
    }  # fmt: skip


def _fetch(port: int) -> int:
    """How many bytes that were."""
    asked = urllib.request.Request(f"http://127.0.0.1:{port}/metrics", headers=_SCRAPER)
    with urllib.request.urlopen(asked) as answer:
        return len(answer.read())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--series", type=int, nargs="+", default=[50, 1_000])
    parser.add_argument("--agent", action="store_true", help="a real one, under load")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    given = parser.parse_args()
    print(f"kernel {platform.release()}, {os.cpu_count()} processors")
    if given.agent:
        for count in given.series:
            print(f"{count} series, {_RATE} requests a second for {given.seconds:.0f} s")
            beside_a_load(count, given.seconds)
        return
    for count in given.series:
        of = Table(count)
        histograms = len(_STAMPS)
        text = texts(metrics_of(of.snapshot()), openmetrics=True)
        print(
            f"{count} series, each of {histograms} histograms and 4 counters; for Prometheus "
            f"{sum(map(len, text)) / 1e6:.1f} MB of text",
            flush=True,
        )
        with Loop(of) as loop:
            time.sleep(_LOOP_S)
        print(f"  nothing          longest turn {loop.longest_s * 1e3:4.0f} ms", flush=True)
        ways: dict[str, Callable[[], str]] = {
            **{
                f"OTLP, {style.name.lower()}": partial(export, of, style)
                for style in HistogramStyle
            },
            "Prometheus": partial(scrape, of),
        }
        for name, once in ways.items():
            print(f"  {name:<17}{measured(of, once)}", flush=True)
        of.table.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"resident at most {peak >> 10} MiB")


if __name__ == "__main__":
    main()

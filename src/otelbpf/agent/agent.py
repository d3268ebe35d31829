# SPDX-License-Identifier: Apache-2.0
"""The whole way on one page: kernel record -> reader -> request -> span -> exporter."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otelbpf.agent.config import Config
from otelbpf.agent.definitions import Part, definitions
from otelbpf.agent.health import Health, answering_probes
from otelbpf.agent.lookout import Lookout
from otelbpf.errors import UsageError
from otelbpf.export.exporters import (
    Signal,
    destination,
    exporter_name,
    is_otlp,
    require_endpoint,
)
from otelbpf.export.metrics import metrics_export
from otelbpf.export.sender import Sender
from otelbpf.export.variables import require_otlp
from otelbpf.export.ways_out import WayOut, spans_way_out
from otelbpf.host import rights
from otelbpf.host.clock import ClockReading, read_clock
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.host.netns import find_netns
from otelbpf.host.processes import Listeners
from otelbpf.host.resource import Resources
from otelbpf.host.rights import Capability, Right
from otelbpf.kernel.attach import Attachments, attached
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose, require, takes_filters, without
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.needs import programs_need_rights
from otelbpf.kernel.records import RequestFlag, Stamp
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.reader import RingReader
from otelbpf.ledger.request import Kind, Request, requests_of
from otelbpf.ledger.sweeper import Sweeper
from otelbpf.ledger.tally import Coverage, Lost, Sums, Tally
from otelbpf.ledger.trace_contexts import contexts_of
from otelbpf.metrics.connections import ConnectionSums
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.snapshot import Snapshot
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import resolve
from otelbpf.traces.spans import StageStyle, spans_of
from otelbpf.userspace.handlers import Handler, HandlerKind, find_handlers
from otelbpf.userspace.thread_contexts import ThreadContexts
from otelbpf.userspace.uprobes import attached_to_handlers

# How often the ring is looked at: a wake-up from the kernel for each record would cost the
# measured server more than all programs together, and many small batches cost the agent more
# than a few large ones.
_POLL_S = 0.05
# A part of the sender's queue: as much at once as fits into it would find it not quite empty.
_BATCH = 4_096
_HOUSEKEEPING_S = 1.0
_LAST_RECORD_S = 1.0
# What exporters may need to start: their certificates may be another user's.
_TO_EXPORT = {Capability.CAP_DAC_READ_SEARCH}
_STAGES_MOST = len(Stamp) - 1

_log = logging.getLogger(__name__)


class Pipeline:
    """From records to the exporter's queue. Knows nothing of the kernel.

    Args:
        way_out: for spans; None throws them away.
        series: adds up what the kernel has not; None: nothing is added up.
    """

    def __init__(
        self,
        config: Config,
        ids: Ids,
        resources: Resources,
        routes: Routes,
        way_out: WayOut[Sequence[ReadableSpan]] | None,
        series: SeriesTable | None = None,
    ) -> None:
        self._config = config
        self._ids = ids
        self.resources = resources
        self._routes = routes
        self._series = series
        self.tally = Tally()
        self.clock: ClockReading = read_clock()
        spans_each = 1 + (_STAGES_MOST if config.stages is StageStyle.SPANS else 0)
        self.sender = Sender(way_out, self._to_spans, spans_each, self.tally, config.queue)

    def refresh(self) -> None:
        """Once a second: compares the clocks again, and looks what became of services."""
        self.clock = read_clock()
        self.resources.refresh()

    def take(self, records: np.ndarray) -> None:
        """Takes a batch of records: queues those that are kept, adds up what is yet to be."""
        kept = records["flags"] & np.uint32(RequestFlag.KEPT) != 0
        if self._series is not None:
            left = np.flatnonzero(records["flags"] & np.uint32(RequestFlag.IN_SERIES) == 0)
            kept[left] |= self._series.add(records[left])
        self.tally.sample_out(int((~kept).sum()))
        self._queue(records[kept])

    def _queue(self, records: np.ndarray) -> None:
        # What will not fit is dropped before the dear work is done on it.
        records = records[: self.sender.admit(len(records))]
        if not len(records):
            return
        contexts = contexts_of(records, self._ids)
        requests = requests_of(
            records, contexts, self._routes, capture_query=self._config.capture_query
        )
        if self._series is not None:
            self._series.exemplify(records, requests, self.clock.offset_ns)
        # Now, as the process may be gone when the spans are made.
        self.sender.put([(request, self._resource_of(request)) for request in requests])

    def _resource_of(self, request: Request) -> Resource:
        port = request.local_port if request.kind is Kind.SERVER else 0
        return self.resources.of(request.process, port).resource

    def _to_spans(self, of: tuple[Request, Resource]) -> list[ReadableSpan]:
        request, resource = of
        return spans_of(request, self.clock, resource, self._config.stages)


class Agent:
    """Attached programs and the pipeline behind them.

    Make it, then run() it until `stop` is set.
    """

    def __init__(
        self,
        programs: Programs,
        pipeline: Pipeline,
        series: SeriesTable | None,
        connections: ConnectionSums | None,
        config: Config,
    ) -> None:
        self._programs = programs
        self._pipeline = pipeline
        self._series = series
        self._connections = connections
        self._started_unix_ns = time.time_ns()
        self._reader = RingReader(programs)
        self._sweeper = Sweeper(programs, int(config.idle_timeout_s * 1e9))
        self._thread_contexts = ThreadContexts(programs)
        self._missed: dict[str, int] = {}
        self._coverage: dict[str, Coverage] = {}

    def know(self, pids: Iterable[int]) -> None:
        """Measured servers that run already: their very first requests can be linked and named."""
        pids = tuple(pids)
        self._thread_contexts.saw(pids, time.monotonic())
        for pid in pids:
            self._pipeline.resources.know(pid)

    def run(
        self, stop: Stop, missed: Callable[[], dict[str, int]], lookout: Lookout, health: Health
    ) -> None:
        """Reads until `stop` is set.

        Args:
            missed: tells how often each hook was passed and its program not run.
            health: is told of each turn, and that no more comes.
        """
        housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        while not stop.is_set():
            health.turns(self._coverage, time.monotonic())
            if self._read_batch() < _BATCH:
                time.sleep(_POLL_S)
            self._coverage = lookout.look(time.monotonic())
            if time.monotonic() >= housekeeping_at:
                self._pipeline.refresh()
                self._sweeper.sweep(time.monotonic_ns())
                self._thread_contexts.refresh(time.monotonic())
                if self._series is not None:
                    self._series.refresh(time.monotonic())
                self._missed = missed()
                housekeeping_at = time.monotonic() + _HOUSEKEEPING_S
        health.stops()
        self._missed = missed()

    def finish(self) -> None:
        """After the programs were detached: drains what they left, and sends it."""
        self._drain()
        self._sweeper.finish(time.monotonic_ns())
        self._drain()
        self._pipeline.tally.lose(Lost.UNREAD, self._reader.pending)
        self._pipeline.sender.stop()

    def _drain(self) -> None:
        """Reads until nothing is left; a record that is being written is waited for."""
        give_up_at = time.monotonic() + _LAST_RECORD_S
        while self._reader.pending and time.monotonic() < give_up_at:
            if self._read_batch():
                give_up_at = time.monotonic() + _LAST_RECORD_S

    def _read_batch(self) -> int:
        records = self._reader.read(_BATCH)
        if len(records):
            self._thread_contexts.saw(np.unique(records["pid"]).tolist(), time.monotonic())
            self._pipeline.take(records)
        return len(records)

    def sums(self) -> Sums:
        """The sums so far."""
        return replace(
            self._pipeline.tally.sums(self._programs.counts()),
            missed=self._missed,
            interfaces=self._coverage,
        )

    def snapshot(self) -> Snapshot:
        """All requests in sums, as they are now; from any thread."""
        return Snapshot(
            start_unix_ns=self._started_unix_ns,
            unix_ns=time.time_ns(),
            resource=self._pipeline.resources.of_agent(),
            series=self._series.snapshot() if self._series is not None else (),
            connections=self._connections.snapshot() if self._connections is not None else (),
            sums=self.sums(),
        )

    def close(self) -> None:
        """Unmaps what was mapped."""
        self._reader.close()
        self._sweeper.close()


def _sampler_of(config: Config, environment: Mapping[str, str]) -> Sampler:
    sampler = config.sampler or Sampler.from_environment(environment)
    # Whoever asks for the slow ones wants to see what goes wrong.
    return replace(
        sampler,
        keep_errors=sampler.keep_errors or bool(config.slow),
        keep_4xx=config.keep_4xx,
    )


def _parts(handlers: tuple[Handler, ...]) -> frozenset[Part]:
    parts = {Part.HANDLERS} if handlers else set()
    if any(handler.kind is HandlerKind.GO for handler in handlers):
        parts.add(Part.GO_HANDLERS)
    return frozenset(parts)


class Stop(Protocol):
    """What tells the agent to stop; threading.Event is one."""

    def is_set(self) -> bool:
        """Shall it stop?"""


def _prepare(path: Path | None) -> None:
    """Takes away what an earlier run left, and finds out whether the file can be written.

    Raises:
        UsageError: it cannot.
    """
    if path is None:
        return
    # Not by the file itself: whoever waits for the ready file could see it.
    probe = path.with_name(path.name + ".part")
    try:
        path.unlink(missing_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _capabilities(kept: tuple[Right, ...]) -> frozenset[Capability]:
    return frozenset(right.capability for right in kept)


def _give_up_all_but(kept: tuple[Right, ...]) -> None:
    """In this thread; all others that the agent has have no more already."""
    rights.give_up(_capabilities(kept))
    more = rights.threads_with_more(_capabilities(kept))
    if more:
        _log.warning("threads of libraries keep all rights: %s", ", ".join(more))


@dataclass(frozen=True)
class Running:
    """An agent that has begun.

    Attributes:
        attachments: what was attached.
        on_handlers: for people: what was attached to handlers.
        destination: where the spans go, for people.
        metrics_destination: where the metrics go.
        rights: that it keeps, and what for.
        snapshot: all requests in sums, as they are when it is called; from any thread, until
            run() returns.
    """

    attachments: Attachments
    on_handlers: list[str]
    destination: str
    metrics_destination: str
    rights: tuple[Right, ...]
    snapshot: Callable[[], Snapshot]


def run(
    config: Config,
    environment: Mapping[str, str],
    stop: Stop,
    on_ready: Callable[[Running], None],
    on_loading: Callable[[], None] = lambda: None,
) -> Sums:
    """Runs the agent until `stop` is set.

    Args:
        environment: the OTEL_* variables.
        on_ready: called once everything is attached.
        on_loading: called before what takes some seconds.
    Returns:
        the sums at the end; nothing is in flight any more.
    Raises:
        OtelbpfError: what failed, and what to do; nothing is left attached.
    """
    name = exporter_name(environment)
    require_endpoint(environment, name)
    if is_otlp(name):
        require_otlp(environment, Signal.TRACES, grpc=name == "otlp_proto_grpc")
    metrics = rights.with_only(_TO_EXPORT, lambda: metrics_export(environment))
    sampler = _sampler_of(config, environment)
    templates = (*config.routes, *(route for route, _ in config.slow.by_route))
    routes = Routes(templates, config.found_routes)
    for path in (config.ready_file, config.sums_file):
        _prepare(path)
    way_out = (
        rights.with_only(_TO_EXPORT, lambda: spans_way_out(name)) if config.output is None
        else spans_way_out(name, config.output)
    )
    netns = find_netns(config.netns)
    cookie = netns.cookie
    listeners = Listeners(config.ports, netns)
    ids, resources = Ids(), Resources(config.service_name, str(cookie), listeners)
    interfaces = find_interfaces(config.interfaces, netns)
    handlers = tuple(handler for spec in config.handlers for handler in find_handlers(spec))
    upstreams = resolve(config.upstreams, config.client_ports, netns)
    with contextlib.ExitStack() as stack:
        health = stack.enter_context(answering_probes(config.health))
        on_loading()
        with Btf.of_kernel() as btf:
            choices = choose(btf, config.hooks, metrics=bool(config.limits.series))
            if config.xdp is Xdp.OFF:
                choices = without(choices, "arrival", "it was asked to be left alone")
            if way_out is None:
                # An application that asks would put its spans below ones that nobody sends.
                choices = without(choices, "mark", "no spans are exported")
            require(choices)
            programs = Programs(btf, choices, config.limits, definitions(
                cookie, config.ports, upstreams=upstreams, sampler=sampler, ids=ids,
                parts=_parts(handlers),
            ))  # fmt: skip
        stack.enter_context(contextlib.closing(programs))
        series = connections = None
        if config.limits.series:
            series = SeriesTable(programs, routes, resources, config.slow)
            stack.enter_context(contextlib.closing(series))
            kinds = (Kind.SERVER,) * bool(config.ports) + (Kind.CLIENT,) * bool(upstreams)
            connections = ConnectionSums(programs, kinds)
            stack.enter_context(contextlib.closing(connections))
        pipeline = Pipeline(config, ids, resources, routes, way_out, series)
        agent = Agent(programs, pipeline, series, connections, config)
        stack.enter_context(contextlib.closing(agent))
        kept = rights.had(rights.kept(
            programs=programs_need_rights(), filters=takes_filters(choices),
            namespace=config.netns is not None, low_port=metrics.low_port,
            files=(config.ready_file, config.sums_file),
        ))
        rights.with_only(_capabilities(kept), pipeline.sender.start)
        agent.know(listeners.of_all_ports())
        if not stop.is_set():
            with (
                attached_to_handlers(programs, handlers) as on_handlers,
                attached(programs, choices, interfaces, netns, config.xdp) as attachments,
            ):
                _give_up_all_but(kept)
                metrics.start(agent.snapshot)
                # Before what snapshots are taken of is closed.
                stack.callback(metrics.stop)
                spans_to = destination(environment, name)
                on_ready(
                    Running(
                        attachments, on_handlers, spans_to, metrics.destination, kept,
                        agent.snapshot,
                    )  # fmt: skip
                )
                with contextlib.closing(
                    Lookout(programs, attachments, netns, cookie, config, time.monotonic())
                ) as lookout:
                    agent.run(stop, attachments.missed, lookout, health)
        agent.finish()
        return agent.sums()

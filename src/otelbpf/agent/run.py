# SPDX-License-Identifier: Apache-2.0
"""Choose, load, attach, run, drain."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from otelbpf.agent.agent import Agent, Stop
from otelbpf.agent.config import Config
from otelbpf.agent.health import answering_probes
from otelbpf.agent.in_force import InForce, routes_of, sampler_of
from otelbpf.agent.lookout import Lookout
from otelbpf.agent.pipeline import Pipeline
from otelbpf.agent.settings import settings
from otelbpf.errors import RefusedError, UsageError
from otelbpf.export.exporters import (
    Signal,
    asked_for,
    destination,
)
from otelbpf.export.metrics import MetricsExport, metrics_export
from otelbpf.export.sender import QueueLimits
from otelbpf.export.variables import settle
from otelbpf.export.ways_out import WayOut, spans_way_out
from otelbpf.host import rights
from otelbpf.host.descriptors import make_room
from otelbpf.host.heap import keep_what_a_batch_takes
from otelbpf.host.interfaces import Xdp, find_interfaces
from otelbpf.host.netns import Netns, find_netns
from otelbpf.host.processes import Listeners
from otelbpf.host.resource import Resources
from otelbpf.host.rights import Capability, Right
from otelbpf.kernel.attach import Attachments, attached
from otelbpf.kernel.bcc_module import has_bcc
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import Choice, choose, require, takes_filters, without
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.loaders import Loader, choose_loader
from otelbpf.kernel.needs import programs_need_rights
from otelbpf.kernel.settings import Part
from otelbpf.ledger.batch import Requests
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Sums
from otelbpf.metrics.connections import ConnectionSums
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.snapshot import Snapshot
from otelbpf.policy.capture import Capture
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams, resolve
from otelbpf.traces.description import Description, StageStyle
from otelbpf.userspace.handler import Handler, HandlerKind
from otelbpf.userspace.uprobes import attached_to_handlers

# What exporters may need to start: their certificates may be another user's.
_TO_EXPORT = {Capability.CAP_DAC_READ_SEARCH}

_log = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class _Exports:
    """The ways out.

    Attributes:
        spans: None: nobody is sent any.
        destination: of the spans, for people.
    """

    spans: WayOut[Requests] | None
    destination: str
    metrics: MetricsExport


@dataclass(frozen=True)
class _Target:
    """What is measured, as it was found at the start."""

    netns: Netns
    cookie: int
    interfaces: dict[str, int]
    handlers: tuple[Handler, ...]
    upstreams: Upstreams
    listeners: Listeners


def run(
    config: Config,
    environment: Mapping[str, str],
    stop: Stop,
    on_ready: Callable[[Running], None],
    on_loading: Callable[[Loader], None] = lambda _: None,
    on_turn: Callable[[Callable[[Config], None]], None] = lambda _: None,
) -> Sums:
    """Runs the agent until `stop` is set.

    Args:
        environment: the OTEL_* variables.
        on_ready: called once everything is attached.
        on_loading: called before the programs are loaded: where they come from.
        on_turn: called several times a second, with what makes another configuration hold from then
            on: another one than `config` only in what CHANGEABLE names.
    Returns:
        the sums at the end; nothing is in flight any more.
    Raises:
        OtelbpfError: what failed, and what to do; nothing is left attached.
    """
    keep_what_a_batch_takes()
    make_room()
    routes = routes_of(config)
    description = Description(routes, config.capture, config.stages)
    exports = _exports(config.output, description, environment)
    sampler = sampler_of(config, environment)
    for path in (config.ready_file, config.sums_file):
        _prepare(path)
    target = _find(config)
    ids = Ids()
    with contextlib.ExitStack() as stack:
        health = stack.enter_context(answering_probes(config.health))
        with Btf.of_kernel() as btf:
            loader = choose_loader(config.loader, btf).loader
            on_loading(loader)
            choices = _choose(config, btf, exports)
            programs = _load(config, loader, btf, choices, target, sampler, ids)
        stack.enter_context(contextlib.closing(programs))
        agent = _wire(stack, config, programs, target, routes, exports, ids)
        in_force = InForce(config, environment, routes, description, programs, agent)
        kept = _rights_kept(config, choices, exports)
        rights.with_only(_capabilities(kept), agent.pipeline.sender.start)
        if not stop.is_set():
            # To attach is to wait for the kernel, mostly.
            meanwhile = stack.enter_context(ThreadPoolExecutor(1))
            knows = meanwhile.submit(lambda: agent.know(target.listeners.of_all_ports()))
            with (
                attached_to_handlers(programs, target.handlers) as on_handlers,
                attached(
                    programs, choices, target.interfaces, target.netns, config.xdp
                ) as attachments,
            ):
                knows.result()
                meanwhile.shutdown()
                _give_up_all_but(kept)
                exports.metrics.start(agent.snapshot)
                # Before what snapshots are taken of is closed.
                stack.callback(exports.metrics.stop)
                on_ready(
                    Running(
                        attachments, on_handlers, exports.destination,
                        exports.metrics.destination, kept, agent.snapshot,
                    )
                )  # fmt: skip
                with contextlib.closing(
                    Lookout(
                        programs, attachments, target.netns, target.cookie, config,
                        time.monotonic(),
                    )
                ) as lookout:  # fmt: skip
                    agent.run(
                        stop, attachments.missed, lookout, health,
                        lambda: on_turn(in_force.become),
                    )  # fmt: skip
        agent.drain()
        return agent.sums()


def require_variables(environment: MutableMapping[str, str]) -> None:
    """Raises UsageError for OTEL_* variables that run() would refuse."""
    settle(environment)
    nothing = Description(Routes(()), Capture(), StageStyle.SPANS)
    _exports(None, nothing, environment)
    Sampler.from_environment(environment)
    QueueLimits.from_environment(environment)


def _exports(
    output: str | None, description: Description, environment: Mapping[str, str]
) -> _Exports:
    """Where spans and metrics go, as the variables say."""
    name = asked_for(environment, Signal.TRACES)
    metrics = rights.with_only(_TO_EXPORT, lambda: metrics_export(environment))
    if output is None:
        spans = rights.with_only(_TO_EXPORT, lambda: spans_way_out(name, description))
    else:
        spans = spans_way_out(name, description, output)
    return _Exports(spans, destination(environment, name), metrics)


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


def _find(config: Config) -> _Target:
    """Finds what is to be measured."""
    netns = find_netns(config.netns)
    return _Target(
        netns,
        netns.cookie,
        find_interfaces(config.interfaces, netns),
        _find_handlers(config.handlers),
        resolve(config.upstreams, config.client_ports, netns),
        Listeners(config.ports, netns),
    )


def _find_handlers(specs: tuple[str, ...]) -> tuple[Handler, ...]:
    if not specs:
        return ()
    # What reads machine code takes long to import.
    from otelbpf.userspace.handlers import find_handlers

    return tuple(handler for spec in specs for handler in find_handlers(spec))


def _choose(config: Config, btf: Btf, exports: _Exports) -> tuple[Choice, ...]:
    """What each hook gets."""
    choices = choose(btf, config.hooks, metrics=bool(config.limits.series))
    if config.xdp is Xdp.OFF:
        choices = without(choices, "arrival", "it was asked to be left alone")
    if exports.spans is None:
        # An application that asks would put its spans below ones that nobody sends.
        choices = without(choices, "mark", "no spans are exported")
    require(choices)
    return choices


def _load(
    config: Config,
    loader: Loader,
    btf: Btf,
    choices: tuple[Choice, ...],
    target: _Target,
    sampler: Sampler,
    ids: Ids,
) -> Programs:
    told = settings(
        target.cookie,
        config.ports,
        upstreams=target.upstreams,
        sampler=sampler,
        ids=ids,
        parts=_parts(target.handlers),
        proxies=config.proxies,
        forwarding=config.forwarding,
    )
    try:
        return Programs(btf, choices, config.limits, told, loader)
    except RefusedError as refusal:
        if config.loader is not Loader.AUTO or loader is Loader.BCC or not has_bcc():
            raise
        words = (refusal.what, "BCC compiles them here instead, in some seconds", refusal.report)
        _log.warning("%s", "; ".join(filter(None, words)))
        return Programs(btf, choices, config.limits, told, Loader.BCC)


def _parts(handlers: tuple[Handler, ...]) -> frozenset[Part]:
    parts = {Part.HANDLERS} if handlers else set()
    if any(handler.kind is HandlerKind.GO for handler in handlers):
        parts.add(Part.GO_HANDLERS)
    return frozenset(parts)


def _wire(
    stack: contextlib.ExitStack,
    config: Config,
    programs: Programs,
    target: _Target,
    routes: Routes,
    exports: _Exports,
    ids: Ids,
) -> Agent:
    """The agent and what it works with, all to be closed with `stack`."""
    resources = Resources(config.service_name, str(target.cookie), target.listeners)
    series = connections = None
    if config.limits.series:
        series = SeriesTable(programs, routes, resources, config.slow)
        stack.enter_context(contextlib.closing(series))
        kinds = (Kind.SERVER,) * bool(config.ports) + (Kind.CLIENT,) * bool(target.upstreams)
        connections = ConnectionSums(programs, kinds)
        stack.enter_context(contextlib.closing(connections))
    pipeline = Pipeline(config, ids, resources, exports.spans, series)
    agent = Agent(programs, pipeline, series, connections, config)
    return stack.enter_context(contextlib.closing(agent))


def _rights_kept(
    config: Config, choices: tuple[Choice, ...], exports: _Exports
) -> tuple[Right, ...]:
    return rights.had(
        rights.kept(
            programs=programs_need_rights(),
            filters=takes_filters(choices),
            namespace=config.netns is not None,
            low_port=exports.metrics.low_port,
            files=(config.ready_file, config.sums_file),
        )
    )


def _capabilities(kept: tuple[Right, ...]) -> frozenset[Capability]:
    return frozenset(right.capability for right in kept)


def _give_up_all_but(kept: tuple[Right, ...]) -> None:
    """In this thread; all others that the agent has have no more already."""
    rights.give_up(_capabilities(kept))
    more = rights.threads_with_more(_capabilities(kept))
    if more:
        _log.warning("threads of libraries keep all rights: %s", ", ".join(more))

# SPDX-License-Identifier: Apache-2.0
"""Injects delays under a real agent, with tcpdump beside it, and collects what all of them say."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.processes import Process, running
from measure import PORT, agent
from support.namespaces import Network

from delays import actor, capture
from delays.actor import Plan, Step
from delays.capture import Capture
from delays.machine import processors
from delays.scenarios import End, Scenario
from otelbpf.ledger.request import Kind
from otelbpf.ledger.stamps import ends_of
from otelbpf.report.otlp_json import Span, lines
from otelbpf.report.recording import path_of
from otelbpf.traces.description import SCOPE

_UPSTREAM_PORT = 9090
#: Requests that come first, without a delay, and count for nothing: caches and windows warm up.
WARM = 4
# Beyond the delays themselves.
_STUCK_S = 60.0
_INTERNAL = 1

Taken = Mapping[End, Mapping[Step, list[tuple[int, int]]]]


@dataclass(frozen=True)
class Told:
    """What the agent told of a request.

    Attributes:
        span: of the request.
        stages: in order.
    """

    span: Span
    stages: tuple[Span, ...]

    @property
    def total_ns(self) -> int:
        return self.span.end_unix_ns - self.span.start_unix_ns

    @property
    def stage_ns(self) -> dict[str, int]:
        """How long each stage took, by name."""
        return {each.name: each.end_unix_ns - each.start_unix_ns for each in self.stages}

    @property
    def acked_ns(self) -> int:
        """From its end until the response was acknowledged; 0: that was not seen."""
        return int(self.span.attributes.get("otelbpf.tcp.ack.duration_ns", 0))

    def stamps_unix_ns(self) -> dict[str, int]:
        """When each stamp was made."""
        stamps = {}
        for stage in self.stages:
            first, second = ends_of(stage.name)
            stamps[first] = stage.start_unix_ns
            stamps[second] = stage.end_unix_ns
        if self.acked_ns:
            stamps["acked"] = self.span.end_unix_ns + self.acked_ns
        return stamps


@dataclass(frozen=True)
class Trial:
    """One scenario's requests on one connection.

    Attributes:
        delays_ns: by request; 0: it had none.
        taken: when each end took its steps.
        told: by request.
        packets: of this and other connections.
    """

    scenario: Scenario
    xdp: bool
    delays_ns: tuple[int, ...]
    taken: Taken
    told: tuple[Told, ...]
    packets: Capture

    @property
    def stage(self) -> str:
        """The stage that has the delay, of those that may have it; empty: none is to."""
        names = self.scenario.stages_with(xdp=self.xdp)
        seen = Counter(name for each in self.told for name in each.stage_ns if name in names)
        return seen.most_common(1)[0][0] if seen else "".join(names[:1])


def delays(count: int, least_ns: int, most_ns: int) -> tuple[int, ...]:
    """So many delays, evenly spread, each after two requests without one and before another.

    The second of them comes, as that with the delay, after one that had none: they are alike.
    """
    step = (most_ns - least_ns) / max(1, count - 1)
    spread = (round(least_ns + step * i) for i in range(count))
    return (0,) * WARM + tuple(delay for each in spread for delay in (0, 0, each)) + (0,)


def run(
    net: Network, scenarios: Sequence[Scenario], delays_ns: tuple[int, ...], *, xdp: bool
) -> list[Trial]:
    """Plays the scenarios, one after the other, under one agent.

    Args:
        delays_ns: by request; a scenario may bear less.
    Raises:
        RuntimeError: something was lost, or there is but one processor.
    """
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        spans = directory / "spans.jsonl"
        expression = f"tcp port {PORT} or tcp port {_UPSTREAM_PORT}"
        with (
            capture.tcpdump(net.server, directory, expression) as packets,
            agent(
                net,
                PORT,
                "--client-port",
                str(_UPSTREAM_PORT),
                "--xdp",
                "on" if xdp else "off",
                "--output",
                str(spans),
                OTEL_TRACES_EXPORTER="otlp_json_file",
            ) as measuring,
        ):
            with _processors_awake():
                played = [_play(net, each, delays_ns, directory) for each in scenarios]
            sums = measuring.stop()
        expected = sum(len(own) for own, _ in played)
        if sums["lost"] or sums["exported"] != expected:
            raise RuntimeError(f"the agent was to export {expected} requests, and says {sums}")
        told = _told(spans)
        seen = capture.read(packets)
    return [
        Trial(scenario, xdp, own, taken,
              tuple(told[f"{_path(scenario)}/{n}"] for n in range(len(own))), seen)
        for scenario, (own, taken) in zip(scenarios, played, strict=True)
    ]  # fmt: skip


@contextlib.contextmanager
def _processors_awake() -> Iterator[None]:
    """An idle processor polls: to wake one from its sleep takes longer than what is measured.

    Source:
        Documentation/power/pm_qos_interface.rst.
    """
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(FileNotFoundError):  # a kernel that does not ask
            latency_us = stack.enter_context(Path("/dev/cpu_dma_latency").open("wb", buffering=0))
            latency_us.write((0).to_bytes(4, sys.byteorder))
        yield


def _path(scenario: Scenario) -> str:
    return f"/truth/{scenario.name}"


def _play(
    net: Network, scenario: Scenario, delays_ns: tuple[int, ...], directory: Path
) -> tuple[tuple[int, ...], Taken]:
    """Gives the delays, too."""
    if scenario.most_ns:
        delays_ns = tuple(min(scenario.most_ns, each) for each in delays_ns)
    subjects, peers = processors()
    sides = {End.SUBJECT: net.server, End.PEER: net.client}
    serving = End.SUBJECT if scenario.kind is Kind.SERVER else End.PEER
    timeout_s = _STUCK_S + sum(delays_ns) / 1e9

    def start(end: End, subject_pid: int = 0) -> contextlib.AbstractContextManager[Process]:
        plan = Plan(
            asks=end is not serving,
            address=sides[serving].ipv4,
            port=PORT if scenario.kind is Kind.SERVER else _UPSTREAM_PORT,
            steps=scenario.subject if end is End.SUBJECT else scenario.peer,
            path=_path(scenario),
            request_bytes=scenario.request_bytes,
            response_bytes=scenario.response_bytes,
            receive_buffer=scenario.peer_receive_buffer if end is End.PEER else 0,
            send_buffer=scenario.subject_send_buffer if end is End.SUBJECT else 0,
            delays_ns=delays_ns,
            processor=subjects if end is End.SUBJECT else peers,
            other_pid=subject_pid,
            other_processor=subjects,
        )
        command = [*sides[end].enter(), sys.executable, actor.__file__, plan.to_json()]
        return running(end, command, directory)

    with start(End.SUBJECT) as subject, start(End.PEER, subject.popen.pid) as peer:
        # In this order: should the peer fail, the subject may wait for it.
        said = {End.PEER: peer.finish(timeout_s), End.SUBJECT: subject.finish(timeout_s)}
    taken = {
        end: {Step(step): each for step, each in json.loads(text).items()}
        for end, text in said.items()
    }
    return delays_ns, taken


def _told(path: Path) -> dict[str, Told]:
    """The requests of a file of spans, by path."""
    spans = [span for line in lines(path) for span in line.spans if span.scope == SCOPE.name]
    stages: dict[str, list[Span]] = {}
    for span in spans:
        if span.kind == _INTERNAL:
            stages.setdefault(span.parent_span_id, []).append(span)
    told = {}
    for span in spans:
        if span.kind != _INTERNAL:
            its = sorted(stages[span.span_id], key=lambda each: each.start_unix_ns)
            told[path_of(span)[1]] = Told(span, tuple(its))
    return told

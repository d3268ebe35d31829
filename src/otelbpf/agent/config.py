# SPDX-License-Identifier: Apache-2.0
"""What the agent is told to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from otelbpf.export.sender import QueueLimits
from otelbpf.host.interfaces import Xdp
from otelbpf.kernel.hooks import Mechanism
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loaders import Loader
from otelbpf.policy.capture import Capture
from otelbpf.policy.proxies import Forwarding, Network
from otelbpf.policy.routes import FOUND_MOST
from otelbpf.policy.sampler import Sampler, Slow
from otelbpf.traces.description import StageStyle

#: Fields of Config that may change while the agent runs.
CHANGEABLE = (
    "capture",
    "found_routes",
    "idle_timeout_s",
    "ignored_routes",
    "keep_4xx",
    "routes",
    "sampler",
    "slow",
)


@dataclass(frozen=True)
class Config:
    """One run of the agent.

    Attributes:
        interfaces: in the measured namespace.
        ports: that the measured servers listen on; may be empty if there are upstreams.
        upstreams: hosts (names or addresses) and ports; what processes here ask of them is
            measured, too.
        client_ports: the same, at whatever address.
        proxies: from where connections may begin with a header of the PROXY protocol.
        forwarding: who says in a request's header for whom it was forwarded.
        netns: name or path of the measured namespace; None: the agent's own.
        duration_s: stop by itself after this; None: never.
        loader: where the programs come from.
        hooks: the one mechanism to use where there is a choice; None: the best of each hook.
        handlers: what to stamp as the requests' handlers, as otelbpf.handlers says.
        xdp: on which interfaces; where it is not there is no `nic` stamp.
        capture: what is told of paths, and of who asks.
        idle_timeout_s: how long an unanswered request may be silent whose socket is not known to
            be open.
        service_name: of the spans; None: the standard variables or the process's name.
        sampler: which requests become spans; None: as the standard variables say.
        slow: from when on a request is kept since it was slow.
        keep_4xx: what servers answer with 4xx is kept with the errors.
        routes: templates, as otelbpf.routes says.
        ignored_routes: templates likewise, of paths whose requests become no spans.
        found_routes: how many routes that were found are in spans; 0: none, nor in metrics.
        output: where otlp_json_file writes.
        ready_file: is there while all is measured that was asked for, and renewed meanwhile.
        health: host and port where probes are answered; None: nowhere.
        sums_file: gets the sums as JSON at the end.
    """

    interfaces: tuple[str, ...]
    ports: tuple[int, ...]
    upstreams: tuple[tuple[str, int], ...] = ()
    client_ports: tuple[int, ...] = ()
    proxies: tuple[Network, ...] = ()
    forwarding: Forwarding = field(default_factory=Forwarding)
    netns: str | None = None
    duration_s: float | None = None
    loader: Loader = Loader.AUTO
    hooks: Mechanism | None = None
    handlers: tuple[str, ...] = ()
    xdp: Xdp = Xdp.AUTO
    stages: StageStyle = StageStyle.SPANS
    capture: Capture = field(default_factory=Capture)
    idle_timeout_s: float = 120.0
    service_name: str | None = None
    sampler: Sampler | None = None
    slow: Slow = field(default_factory=Slow)
    keep_4xx: bool = False
    routes: tuple[str, ...] = ()
    ignored_routes: tuple[str, ...] = ()
    found_routes: int = FOUND_MOST
    output: str | None = None
    ready_file: Path | None = None
    health: tuple[str, int] | None = None
    sums_file: Path | None = None
    limits: Limits = field(default_factory=Limits)
    queue: QueueLimits = field(default_factory=QueueLimits)

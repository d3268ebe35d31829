# SPDX-License-Identifier: Apache-2.0
"""Which hook gives which stamp: the candidates, best first, and how to tell what a kernel has.

The choice is made by looking at the running kernel, never at its version.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from otelbpf.btf import Btf
from otelbpf.errors import KernelError

KPROBE_EVENTS = Path("/sys/bus/event_source/devices/kprobe/type")


class Mechanism(StrEnum):
    """A way to attach a program to a place in the kernel."""

    XDP = "xdp"
    TC = "tc"
    KPROBE = "kprobe"
    RAW_TRACEPOINT = "raw tracepoint"


@dataclass(frozen=True)
class Candidate:
    """One way to get a stamp.

    Attributes:
        target: the kernel's name of the place.
        program: the function in bpf/ that serves it; None while there is none.
    """

    mechanism: Mechanism
    target: str
    program: str | None


@dataclass(frozen=True)
class Hook:
    """A place that gives stamps, and the candidates for it.

    Attributes:
        stamps: what it stamps; empty for a hook that only helps others.
        purpose: for people, as `otelbpf check` shows it.
        required: without it there is no ledger at all.
    """

    name: str
    stamps: tuple[str, ...]
    purpose: str
    candidates: tuple[Candidate, ...]
    required: bool = False


def _raw(target: str) -> Candidate:
    return Candidate(Mechanism.RAW_TRACEPOINT, target, f"raw_{target}")


def _kprobe(target: str) -> Candidate:
    return Candidate(Mechanism.KPROBE, target, None)


HOOKS: tuple[Hook, ...] = (
    Hook(
        "arrival",
        ("nic", "nic_last"),
        "the driver hands over a packet",
        (Candidate(Mechanism.XDP, "native", "xdp_arrival"),
         Candidate(Mechanism.XDP, "generic", "xdp_arrival")),
    ),
    Hook(
        "ingress",
        ("tc", "acked"),
        "traffic control, inbound: requests and acknowledgements",
        (Candidate(Mechanism.TC, "tcx", "tc_ingress"),
         Candidate(Mechanism.TC, "clsact", "tc_ingress")),
        required=True,
    ),
    Hook(
        "egress",
        ("tc_out", "tc_out_last"),
        "traffic control, outbound: responses",
        (Candidate(Mechanism.TC, "tcx", "tc_egress"),
         Candidate(Mechanism.TC, "clsact", "tc_egress")),
        required=True,
    ),
    Hook(
        "tcp",
        ("tcp",),
        "TCP takes a segment",
        (_kprobe("tcp_v4_rcv"), _raw("tcp_probe")),
    ),
    Hook(
        "queued",
        ("queued",),
        "bytes are on the socket's receive queue",
        (_kprobe("tcp_queue_rcv"), _kprobe("tcp_data_ready"), _raw("sk_data_ready")),
    ),
    Hook("waking", ("woken",), "a task is woken", (_raw("sched_waking"),)),
    Hook("softirq", (), "bounds what a wake-up is put down to", (_raw("softirq_exit"),)),
    Hook("switch", ("running",), "a task gets a CPU", (_raw("sched_switch"),)),
    Hook(
        "read",
        ("read", "read_last"),
        "the application reads",
        (_kprobe("tcp_recvmsg"), _raw("sock_recv_length")),
    ),
    Hook(
        "write",
        ("write", "write_last"),
        "the application writes",
        (_kprobe("tcp_sendmsg"), _raw("tcp_sendmsg_locked")),
    ),
    Hook(
        "state",
        (),
        "connections open and close",
        (_raw("inet_sock_set_state"),),
        required=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one candidate on this kernel."""

    candidate: Candidate
    available: bool
    reason: str


@dataclass(frozen=True)
class Choice:
    """What one hook gets on this kernel.

    Attributes:
        verdicts: of all candidates, in the table's order.
        chosen: the first one available; None: its stamps will be absent.
    """

    hook: Hook
    verdicts: tuple[Verdict, ...]
    chosen: Candidate | None


def _probe_kprobe(btf: Btf, candidate: Candidate) -> tuple[bool, str]:
    if not KPROBE_EVENTS.exists():
        return False, "this kernel has no kprobes (CONFIG_KPROBES)"
    if not btf.has_function(candidate.target):
        return False, f"this kernel has no function {candidate.target}, or it was inlined"
    if candidate.program is None:
        return False, "the kernel has it; otelbpf has no program for it yet"
    return True, f"function {candidate.target}"


def _probe_raw_tracepoint(btf: Btf, candidate: Candidate) -> tuple[bool, str]:
    if not btf.has_tracepoint(candidate.target):
        return False, f"this kernel has no tracepoint {candidate.target}"
    return True, f"tracepoint {candidate.target}"


def _probe_xdp(btf: Btf, candidate: Candidate) -> tuple[bool, str]:
    if candidate.target == "generic":
        return True, "works on every interface, after the packet's buffer was made"
    return True, "if the interface's driver has it"


def _probe_tc(btf: Btf, candidate: Candidate) -> tuple[bool, str]:
    if candidate.target == "tcx" and not btf.has_function("tcx_link_attach"):
        return False, "this kernel has no tcx links"
    return True, "link" if candidate.target == "tcx" else "filter on a clsact qdisc"


_PROBES: dict[Mechanism, Callable[[Btf, Candidate], tuple[bool, str]]] = {
    Mechanism.KPROBE: _probe_kprobe,
    Mechanism.RAW_TRACEPOINT: _probe_raw_tracepoint,
    Mechanism.XDP: _probe_xdp,
    Mechanism.TC: _probe_tc,
}


def choose(btf: Btf) -> tuple[Choice, ...]:
    """What each hook gets on the kernel that `btf` describes. Attaches nothing."""
    choices = []
    for hook in HOOKS:
        verdicts = tuple(
            Verdict(candidate, *_PROBES[candidate.mechanism](btf, candidate))
            for candidate in hook.candidates
        )
        chosen = next((v.candidate for v in verdicts if v.available), None)
        choices.append(Choice(hook, verdicts, chosen))
    return tuple(choices)


def require(choices: tuple[Choice, ...]) -> None:
    """Raises KernelError where a hook that the ledger cannot do without has no candidate."""
    for choice in choices:
        if choice.hook.required and choice.chosen is None:
            reasons = "; ".join(verdict.reason for verdict in choice.verdicts)
            raise KernelError(
                f"this kernel has nothing for the hook {choice.hook.name} "
                f"({choice.hook.purpose}): {reasons}; otelbpf cannot measure without it"
            )


def without(choices: tuple[Choice, ...], name: str) -> tuple[Choice, ...]:
    """The same choices, but nothing for the hook called `name`."""
    return tuple(
        Choice(choice.hook, choice.verdicts, None) if choice.hook.name == name else choice
        for choice in choices
    )

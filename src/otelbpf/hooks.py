# SPDX-License-Identifier: Apache-2.0
"""Which hook gives which stamp: the candidates, best first, and how to tell what a kernel has.

The choice is made by looking at the running kernel, never at its version. All
candidates of a hook are the same place in the kernel, so a request gets the
same stamps from each.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from otelbpf import libbpf
from otelbpf.btf import Btf
from otelbpf.errors import KernelError
from otelbpf.symbols import Symbols


class Mechanism(StrEnum):
    """A way to attach a program to a place in the kernel."""

    XDP = "xdp"
    TC = "tc"
    FENTRY = "fentry"
    TRACEPOINT = "tracepoint"
    KPROBE = "kprobe"


#: Those that can be forced upon the hooks that know them.
FORCEABLE = (Mechanism.FENTRY, Mechanism.TRACEPOINT, Mechanism.KPROBE)


@dataclass(frozen=True)
class Candidate:
    """One way to get a stamp.

    Attributes:
        targets: the kernel's names of the place. The first must be there; of
            the others, which some kernels have besides, those that are.
        program: the function in bpf/ that serves it.
    """

    mechanism: Mechanism
    targets: tuple[str, ...]
    program: str

    def __str__(self) -> str:
        return f"{self.mechanism} {', '.join(self.targets)}"


@dataclass(frozen=True)
class Hook:
    """A place that gives stamps, and the candidates for it.

    Attributes:
        stamps: what it stamps; empty for a hook that only helps others.
        purpose: for people, as `otelbpf check` shows it.
        arguments: the structures that its first arguments point to.
        required: without it there is no ledger at all.
        passed_by_all: by every exchange over TCP, on whatever connection.
    """

    name: str
    stamps: tuple[str, ...]
    purpose: str
    candidates: tuple[Candidate, ...]
    arguments: tuple[str, ...] = ()
    required: bool = False
    passed_by_all: bool = False

    @property
    def on_interface(self) -> bool:
        """Is it attached to network interfaces, not to the kernel's code?"""
        return self.candidates[0].mechanism in (Mechanism.XDP, Mechanism.TC)


def _tracepoint(target: str, name: str) -> Candidate:
    return Candidate(Mechanism.TRACEPOINT, (target,), f"traced_{name}")


def _function(name: str, *targets: str) -> tuple[Candidate, Candidate]:
    """A function's entry: as a typed program costs least, as a kprobe most."""
    return (
        Candidate(Mechanism.FENTRY, targets, f"traced_{name}"),
        Candidate(Mechanism.KPROBE, targets, f"probed_{name}"),
    )


def _socket_hook(
    name: str,
    stamps: tuple[str, ...],
    purpose: str,
    arguments: tuple[str, ...],
    functions: tuple[str, ...],
    tracepoint: str,
) -> Hook:
    fentry, kprobe = _function(name, *functions)
    return Hook(
        name, stamps, purpose, (fentry, _tracepoint(tracepoint, name), kprobe), arguments,
        passed_by_all=True,
    )


HOOKS: tuple[Hook, ...] = (
    Hook(
        "arrival",
        ("nic", "nic_last"),
        "the driver hands over a packet",
        (Candidate(Mechanism.XDP, ("native",), "xdp_arrival"),
         Candidate(Mechanism.XDP, ("generic",), "xdp_arrival")),
    ),
    Hook(
        "ingress",
        ("tc", "acked"),
        "traffic control, inbound: requests and acknowledgements",
        (Candidate(Mechanism.TC, ("tcx",), "tc_ingress"),
         Candidate(Mechanism.TC, ("clsact",), "tc_ingress")),
        required=True,
    ),
    Hook(
        "egress",
        ("tc_out", "tc_out_last"),
        "traffic control, outbound: responses",
        (Candidate(Mechanism.TC, ("tcx",), "tc_egress"),
         Candidate(Mechanism.TC, ("clsact",), "tc_egress")),
        required=True,
    ),
    _socket_hook(
        "tcp", ("tcp",), "TCP takes a segment", ("sock", "sk_buff"),
        ("tcp_rcv_established",), "tcp_probe",
    ),
    _socket_hook(
        "queued", ("queued",), "bytes are on the socket's receive queue", ("sock",),
        ("sock_def_readable",), "sk_data_ready",
    ),
    Hook("waking", ("woken",), "a task is woken", (_tracepoint("sched_waking", "waking"),),
         ("task_struct",)),
    Hook("softirq", (), "bounds what a wake-up is put down to",
         (_tracepoint("softirq_exit", "softirq_exit"),)),
    Hook("switch", ("running",), "a task gets a CPU", (_tracepoint("sched_switch", "switch"),)),
    # Not the return of tcp_recvmsg(): a reader waits inside that function, and a kretprobe can
    # follow no more calls at once than it was given instances; it misses the other returns.
    _socket_hook(
        "read", ("read", "read_last"), "the application has read", ("sock",),
        ("tcp_rcv_space_adjust",), "tcp_rcv_space_adjust",
    ),
    # sendfile() has a way of its own, tcp_sendpage_locked(), on kernels before 6.5.
    _socket_hook(
        "write", ("write", "write_last"), "the application writes", ("sock",),
        ("tcp_sendmsg_locked", "tcp_sendpage_locked"), "tcp_sendmsg_locked",
    ),
    Hook(
        "state",
        (),
        "connections open and close",
        (_tracepoint("inet_sock_set_state", "state"),),
        ("sock",),
        required=True,
        passed_by_all=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one candidate on this kernel.

    Attributes:
        candidate: with those of its targets that are there.
        tried: it looked available, and failed when it was used.
    """

    candidate: Candidate
    available: bool
    reason: str
    tried: bool = False


@dataclass(frozen=True)
class Choice:
    """What one hook gets on this kernel.

    Attributes:
        verdicts: of all candidates, in the table's order.
    """

    hook: Hook
    verdicts: tuple[Verdict, ...]

    @property
    def chosen(self) -> Candidate | None:
        """The first candidate that is available; None: its stamps will be absent."""
        return next((v.candidate for v in self.verdicts if v.available), None)

    @property
    def passed_over(self) -> tuple[Verdict, ...]:
        """What was better than the chosen one, had it been there."""
        ahead = []
        for verdict in self.verdicts:
            if verdict.available:
                break
            ahead.append(verdict)
        return tuple(ahead)

    def without(self, candidate: Candidate, reason: str) -> Choice:
        """The same, but `candidate` was tried and failed."""
        return replace(
            self,
            verdicts=tuple(
                Verdict(v.candidate, False, reason, tried=True) if v.candidate == candidate else v
                for v in self.verdicts
            ),
        )

    def only(self, mechanism: Mechanism) -> Choice:
        """The same, but by `mechanism` alone; a hook that never has it stays as it is."""
        if all(v.candidate.mechanism is not mechanism for v in self.verdicts):
            return self
        return replace(
            self,
            verdicts=tuple(
                v if v.candidate.mechanism is mechanism or not v.available
                else Verdict(v.candidate, False, f"only {mechanism} was asked for")
                for v in self.verdicts
            ),
        )


class Kernel:
    """What the running kernel can be asked about its hooks. Attaches nothing."""

    def __init__(self, btf: Btf) -> None:
        self._btf = btf

    @cached_property
    def _symbols(self) -> Symbols:
        return Symbols.of_kernel()

    def look_at(self, hook: Hook, candidate: Candidate) -> Verdict:
        """Can `candidate` serve `hook` here?"""
        present = tuple(
            target for target in candidate.targets[1:]
            if self._btf.has_function(target) and not self._symbols.why_not_probed(target)
        )
        candidate = replace(candidate, targets=(candidate.targets[0], *present))
        look: Callable[[Candidate, tuple[str, ...]], tuple[bool, str]] = {
            Mechanism.XDP: self._look_at_xdp,
            Mechanism.TC: self._look_at_tc,
            Mechanism.FENTRY: self._look_at_fentry,
            Mechanism.TRACEPOINT: self._look_at_tracepoint,
            Mechanism.KPROBE: self._look_at_kprobe,
        }[candidate.mechanism]
        return Verdict(candidate, *look(candidate, hook.arguments))

    def _look_at_xdp(self, candidate: Candidate, _: tuple[str, ...]) -> tuple[bool, str]:
        if candidate.targets == ("generic",):
            return True, "works on every interface, after the packet's buffer was made"
        return True, "if the interface's driver has it"

    def _look_at_tc(self, candidate: Candidate, _: tuple[str, ...]) -> tuple[bool, str]:
        if candidate.targets == ("clsact",):
            return True, "filter on a clsact qdisc"
        if not self._btf.has_function("tcx_link_attach"):
            return False, "this kernel has no tcx links"
        return True, "link"

    def _look_at_tracepoint(
        self, candidate: Candidate, arguments: tuple[str, ...]
    ) -> tuple[bool, str]:
        (target,) = candidate.targets
        if not self._btf.has_tracepoint(target):
            return False, f"this kernel has no tracepoint {target}"
        found = self._btf.tracepoint_arguments(target)
        return self._compare(f"tracepoint {target}", found, arguments)

    def _look_at_kprobe(
        self, candidate: Candidate, arguments: tuple[str, ...]
    ) -> tuple[bool, str]:
        if not libbpf.KPROBE_EVENTS.exists():
            return False, "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        return self._look_at_function(candidate.targets[0], arguments)

    def _look_at_fentry(
        self, candidate: Candidate, arguments: tuple[str, ...]
    ) -> tuple[bool, str]:
        target = candidate.targets[0]
        available, reason = self._look_at_function(target, arguments)
        if not available:
            return available, reason
        refusal = self._fentry_refusal(target)
        return (False, refusal) if refusal else (available, reason)

    def _look_at_function(self, name: str, arguments: tuple[str, ...]) -> tuple[bool, str]:
        reason = self._symbols.why_not_probed(name)
        if reason:
            return False, reason
        if not self._btf.has_function(name):
            return False, f"the kernel's BTF does not describe the function {name}"
        return self._compare(f"function {name}", self._btf.function_arguments(name), arguments)

    def _compare(
        self, what: str, found: tuple[str, ...], arguments: tuple[str, ...]
    ) -> tuple[bool, str]:
        if found[: len(arguments)] != arguments:
            return False, (
                f"the arguments of {what} are ({', '.join(found)}), not ({', '.join(arguments)})"
            )
        return True, what

    def _fentry_refusal(self, target: str) -> str | None:
        """Why the kernel takes no program at this function's entry; None: it takes one."""
        return_0 = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
        try:
            os.close(
                libbpf.load_tracing(
                    "otelbpf_try", return_0, libbpf.BPF_TRACE_FENTRY, self._btf.function_id(target)
                )
            )
        except libbpf.VerifierError as error:
            last = error.log.strip().splitlines()
            words = f" ({last[0]})" if last and not last[0].startswith("processed ") else ""
            return f"this kernel takes no fentry programs: {error.strerror}{words}"
        return None


def choose(btf: Btf, only: Mechanism | None = None) -> tuple[Choice, ...]:
    """What each hook gets on the kernel that `btf` describes. Attaches nothing.

    Args:
        only: one of FORCEABLE, for the hooks that know it; None: the best of each.
    """
    kernel = Kernel(btf)
    choices = (
        Choice(hook, tuple(kernel.look_at(hook, candidate) for candidate in hook.candidates))
        for hook in HOOKS
    )
    return tuple(choice if only is None else choice.only(only) for choice in choices)


def require(choices: tuple[Choice, ...]) -> None:
    """Raises KernelError where a hook that the ledger cannot do without has no candidate."""
    for choice in choices:
        if choice.hook.required and choice.chosen is None:
            reasons = "; ".join(verdict.reason for verdict in choice.verdicts)
            raise KernelError(
                f"this kernel has nothing for the hook {choice.hook.name} "
                f"({choice.hook.purpose}): {reasons}; otelbpf cannot measure without it"
            )


def without(choices: tuple[Choice, ...], name: str, reason: str) -> tuple[Choice, ...]:
    """The same choices, but nothing for the hook called `name`."""
    return tuple(
        replace(choice, verdicts=tuple(replace(v, available=False, reason=reason)
                                       for v in choice.verdicts))
        if choice.hook.name == name else choice
        for choice in choices
    )

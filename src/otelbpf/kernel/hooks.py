# SPDX-License-Identifier: Apache-2.0
"""Which hook gives which stamp: the candidates, best first, and how to tell what a kernel has.

The choice is made by looking at the running kernel, never at its version. All
candidates of a hook are the same place in the kernel, so a request gets the
same stamps from each.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property

from otelbpf.errors import KernelError
from otelbpf.host import rights
from otelbpf.host.processes import cgroup_directory
from otelbpf.kernel import libbpf
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.symbols import Symbols


class Mechanism(StrEnum):
    """A way to attach a program to a place in the kernel."""

    XDP = "xdp"
    TC = "tc"
    TRACEPOINT = "tracepoint"
    FENTRY = "fentry"
    KPROBE = "kprobe"
    CGROUP = "cgroup"


#: Those of which one can be forced upon the hooks that have a choice.
FORCEABLE = (Mechanism.TRACEPOINT, Mechanism.FENTRY, Mechanism.KPROBE)


@dataclass(frozen=True)
class Candidate:
    """One way to get a stamp.

    Attributes:
        target: the kernel's name of the place.
        program: the function in bpf/ that serves it.
    """

    mechanism: Mechanism
    target: str
    program: str

    def __str__(self) -> str:
        return f"{self.mechanism} {self.target}"


@dataclass(frozen=True)
class Hook:
    """A place that gives stamps, and the candidates for it.

    Attributes:
        stamps: what it stamps; empty for a hook that only helps others.
        purpose: for people, as `otelbpf check` shows it.
        arguments: the structures that its first arguments point to.
        required: without it there is no ledger at all.
        passed_by_all: by every exchange over TCP, on whatever connection.
        not_everywhere: a way of its own that only some kernels have; nothing is
            missing on the others.
        measures: what metrics get from it; a hook that has no stamps besides is there for
            metrics only.
    """

    name: str
    stamps: tuple[str, ...]
    purpose: str
    candidates: tuple[Candidate, ...]
    arguments: tuple[str, ...] = ()
    required: bool = False
    passed_by_all: bool = False
    not_everywhere: bool = False
    measures: tuple[str, ...] = ()

    @property
    def gives(self) -> tuple[str, ...]:
        """All that is absent without it."""
        return self.stamps + self.measures

    @property
    def for_metrics(self) -> bool:
        """Is it of use for metrics only?"""
        return bool(self.measures) and not self.stamps

    @property
    def on_interface(self) -> bool:
        """Is it attached to network interfaces, not to the kernel's code?"""
        return self.candidates[0].mechanism in (Mechanism.XDP, Mechanism.TC)

    @property
    def can_be_forced(self) -> bool:
        """Does it know several of the mechanisms of which one can be forced?"""
        return len({candidate.mechanism for candidate in self.candidates} & set(FORCEABLE)) > 1


def _tracepoint(target: str, name: str) -> Candidate:
    return Candidate(Mechanism.TRACEPOINT, target, f"traced_{name}")


def _fentry(target: str, name: str) -> Candidate:
    return Candidate(Mechanism.FENTRY, target, f"traced_{name}")


def _kprobe(target: str, name: str) -> Candidate:
    return Candidate(Mechanism.KPROBE, target, f"probed_{name}")


def _by_cost(name: str, function: str, tracepoint: str) -> tuple[Candidate, ...]:
    """A function's entry, or the tracepoint in it: what costs least comes first."""
    return _tracepoint(tracepoint, name), _fentry(function, name), _kprobe(function, name)


HOOKS: tuple[Hook, ...] = (
    Hook(
        "arrival",
        ("nic", "nic_last"),
        "the driver hands over a packet",
        (
            Candidate(Mechanism.XDP, "native", "xdp_arrival"),
            Candidate(Mechanism.XDP, "generic", "xdp_arrival"),
        ),
    ),
    Hook(
        "ingress",
        ("tc", "tc_last", "acked"),
        "traffic control, inbound: requests and acknowledgements",
        (
            Candidate(Mechanism.TC, "tcx", "tc_ingress"),
            Candidate(Mechanism.TC, "clsact", "tc_ingress"),
        ),
        required=True,
    ),
    Hook(
        "egress",
        ("tc_out", "tc_out_last"),
        "traffic control, outbound: responses",
        (
            Candidate(Mechanism.TC, "tcx", "tc_egress"),
            Candidate(Mechanism.TC, "clsact", "tc_egress"),
        ),
        required=True,
    ),
    Hook(
        "tcp",
        ("tcp",),
        "TCP takes a segment",
        _by_cost("tcp", "tcp_rcv_established", "tcp_probe"),
        ("sock", "sk_buff"),
        passed_by_all=True,
    ),
    Hook(
        "queued",
        ("queued",),
        "bytes are on the socket's receive queue",
        _by_cost("queued", "sock_def_readable", "sk_data_ready"),
        ("sock",),
        passed_by_all=True,
    ),
    Hook(
        "waking",
        ("woken",),
        "a task is woken",
        (_tracepoint("sched_waking", "waking"),),
        ("task_struct",),
    ),
    Hook(
        "softirq",
        (),
        "bounds what a wake-up is put down to",
        (_tracepoint("softirq_exit", "softirq_exit"),),
    ),
    Hook("switch", ("running",), "a task gets a CPU", (_tracepoint("sched_switch", "switch"),)),
    # Not the return of tcp_recvmsg(): a reader waits inside that function, and a kretprobe can
    # follow no more calls at once than it was given instances; it misses the other returns.
    Hook(
        "read",
        ("read", "read_last"),
        "the application has read",
        _by_cost("read", "tcp_rcv_space_adjust", "tcp_rcv_space_adjust"),
        ("sock",),
        passed_by_all=True,
    ),
    Hook(
        "write",
        ("write", "write_last"),
        "the application writes",
        _by_cost("write", "tcp_sendmsg_locked", "tcp_sendmsg_locked"),
        ("sock", "msghdr"),
        passed_by_all=True,
    ),
    # Since 6.5 sendfile() takes the way of all other writes.
    Hook(
        "sendfile",
        ("write", "write_last"),
        "the application writes by sendfile()",
        (_fentry("do_tcp_sendpages", "sendfile"), _kprobe("do_tcp_sendpages", "sendfile")),
        ("sock",),
        passed_by_all=True,
        not_everywhere=True,
    ),
    Hook(
        "state",
        ("ended",),
        "connections open and close",
        (_tracepoint("inet_sock_set_state", "state"),),
        ("sock",),
        required=True,
        passed_by_all=True,
    ),
    # Where accept() joins a socket to a file. Not the return of inet_csk_accept(), in which
    # whoever accepts waits: see read.
    Hook(
        "accept",
        (),
        "the application accepts a connection",
        (_fentry("security_sock_graft", "accept"), _kprobe("security_sock_graft", "accept")),
        ("sock", "socket"),
        passed_by_all=True,
        measures=("accept_queue",),
    ),
    Hook(
        "reset",
        (),
        "this side resets a connection",
        (_tracepoint("tcp_send_reset", "reset"),),
        ("sock", "sk_buff"),
        measures=("reset",),
    ),
    Hook(
        "mark",
        ("handler_start", "handler_end"),
        "applications with the plugin say which span is theirs",
        (Candidate(Mechanism.CGROUP, "setsockopt", "marked_request"),),
        not_everywhere=True,
    ),
)


@dataclass(frozen=True)
class Verdict:
    """What was found out about one candidate on this kernel.

    Attributes:
        tried: it looked available, and failed when it was used.
    """

    candidate: Candidate
    available: bool
    reason: str
    tried: bool = False

    def __str__(self) -> str:
        return f"{self.candidate}: {self.reason}"


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
        """The same, but by `mechanism` alone; a hook with but one way stays as it is."""
        if not self.hook.can_be_forced:
            return self
        return replace(
            self,
            verdicts=tuple(
                v
                if v.candidate.mechanism is mechanism or not v.available
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
        look: Callable[[Candidate, tuple[str, ...]], tuple[bool, str]] = {
            Mechanism.XDP: self._look_at_xdp,
            Mechanism.TC: self._look_at_tc,
            Mechanism.FENTRY: self._look_at_fentry,
            Mechanism.TRACEPOINT: self._look_at_tracepoint,
            Mechanism.KPROBE: self._look_at_kprobe,
            Mechanism.CGROUP: self._look_at_cgroup,
        }[candidate.mechanism]
        return Verdict(candidate, *look(candidate, hook.arguments))

    def _look_at_xdp(self, candidate: Candidate, _: tuple[str, ...]) -> tuple[bool, str]:
        if candidate.target == "generic":
            return True, "works on every interface, after the packet's buffer was made"
        return True, "if the interface's driver has it"

    def _look_at_tc(self, candidate: Candidate, _: tuple[str, ...]) -> tuple[bool, str]:
        if candidate.target == "clsact":
            return True, "filter on a clsact qdisc"
        if not self._btf.has_function("tcx_link_attach"):
            return False, "this kernel has no tcx links"
        if not self._btf.has_function("bpf_iter_bpf_prog"):
            return False, "this kernel does not list its programs"
        return True, "link"

    def _look_at_tracepoint(
        self, candidate: Candidate, arguments: tuple[str, ...]
    ) -> tuple[bool, str]:
        target = candidate.target
        if not self._btf.has_tracepoint(target):
            return False, f"this kernel has no tracepoint {target}"
        found = self._btf.tracepoint_arguments(target)
        return self._compare(f"tracepoint {target}", found, arguments)

    def _look_at_kprobe(self, candidate: Candidate, arguments: tuple[str, ...]) -> tuple[bool, str]:
        if not libbpf.KPROBE_EVENTS.exists():
            return False, "this kernel has no kprobes (CONFIG_KPROBE_EVENTS)"
        return self._look_at_function(candidate.target, arguments)

    def _look_at_fentry(self, candidate: Candidate, arguments: tuple[str, ...]) -> tuple[bool, str]:
        target = candidate.target
        if self._btf.has_function(target) and (refusal := self._fentry_refusal(target)):
            return False, refusal
        return self._look_at_function(target, arguments)

    def _look_at_cgroup(self, _: Candidate, __: tuple[str, ...]) -> tuple[bool, str]:
        directory = cgroup_directory()
        if directory is None:
            return False, "no cgroup2 file system is mounted"
        return True, f"for all processes in {directory}"

    def _look_at_function(self, name: str, arguments: tuple[str, ...]) -> tuple[bool, str]:
        if not self._btf.has_function(name):
            return False, f"this kernel has no function {name} that its BTF describes"
        available, reason = self._compare(
            f"function {name}", self._btf.function_arguments(name), arguments
        )
        # Asked last: to read all of the kernel's symbols takes longer than all else.
        missed = self._symbols.why_not_probed(name) if available else None
        return (False, missed) if missed else (available, reason)

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
        target_id = self._btf.function_id(target)
        try:
            os.close(
                libbpf.load_program(
                    "otelbpf_try",
                    libbpf.RETURN_0,
                    libbpf.BPF_PROG_TYPE_TRACING,
                    libbpf.BPF_TRACE_FENTRY,
                    target_id,
                )
            )
        except libbpf.VerifierError as error:
            if error.errno == errno.EPERM and rights.missing():
                return (
                    "only who has the rights to load programs is told if it takes fentry programs"
                )
            last = error.log.strip().splitlines()
            words = f" ({last[0]})" if last and not last[0].startswith("processed ") else ""
            return f"this kernel takes no fentry programs: {error.strerror}{words}"
        return None


def choose(btf: Btf, only: Mechanism | None = None, *, metrics: bool = False) -> tuple[Choice, ...]:
    """What each hook gets on the kernel that `btf` describes. Attaches nothing.

    Args:
        only: one of FORCEABLE, for the hooks that have a choice; None: the best of each.
        metrics: also what only metrics need.
    """
    kernel = Kernel(btf)
    choices = (
        Choice(hook, tuple(kernel.look_at(hook, candidate) for candidate in hook.candidates))
        for hook in HOOKS
        if metrics or not hook.for_metrics
    )
    return tuple(choice if only is None else choice.only(only) for choice in choices)


def require(choices: tuple[Choice, ...]) -> None:
    """Raises KernelError where a hook that the ledger cannot do without has no candidate."""
    for choice in choices:
        if choice.hook.required and choice.chosen is None:
            reasons = "; ".join(verdict.reason for verdict in choice.verdicts)
            raise KernelError(
                f"this kernel has nothing for the hook {choice.hook.name} "
                f"({choice.hook.purpose}), which otelbpf cannot measure without ({reasons})",
                "use a kernel that has one",
            )


def takes_filters(choices: tuple[Choice, ...]) -> bool:
    """Is traffic control watched by filters, for want of links?"""
    return any(choice.chosen is not None and choice.chosen.target == "clsact" for choice in choices)


def without(choices: tuple[Choice, ...], name: str, reason: str) -> tuple[Choice, ...]:
    """The same choices, but nothing for the hook called `name`."""
    return tuple(
        replace(
            choice,
            verdicts=tuple(replace(v, available=False, reason=reason) for v in choice.verdicts),
        )
        if choice.hook.name == name
        else choice
        for choice in choices
    )

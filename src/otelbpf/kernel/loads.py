# SPDX-License-Identifier: Apache-2.0
"""Programs, as they are loaded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from otelbpf.kernel import libbpf
from otelbpf.kernel.hooks import Candidate, Mechanism

# Of programs that are loaded for nothing in particular, by how their names begin.
_TYPES = {
    "tc": libbpf.BPF_PROG_TYPE_SCHED_CLS,
    "sweep": libbpf.BPF_PROG_TYPE_SCHED_CLS,
    "xdp": libbpf.BPF_PROG_TYPE_XDP,
    "probed": libbpf.BPF_PROG_TYPE_KPROBE,
    "learn": libbpf.BPF_PROG_TYPE_RAW_TRACEPOINT,
}
_ATTACH_TYPES = {
    Mechanism.FENTRY: libbpf.BPF_TRACE_FENTRY,
    Mechanism.TRACEPOINT: libbpf.BPF_TRACE_RAW_TP,
    Mechanism.CGROUP: libbpf.BPF_CGROUP_SETSOCKOPT,
}


@dataclass(frozen=True)
class Load:
    """A program as it is loaded: a typed one anew for each target.

    Attributes:
        program: its name in bpf/.
        attach_type: BPF_*, of a program that is loaded for one; 0 for all others.
        target: the kernel's function or tracepoint that it is for; empty: for none.
    """

    program: str
    attach_type: int = 0
    target: str = ""

    def __str__(self) -> str:
        return f"{self.program} for {self.target}" if self.target else self.program

    @property
    def type(self) -> int:
        """BPF_PROG_TYPE_*."""
        if self.attach_type in (0, libbpf.BPF_TRACE_UPROBE_MULTI):
            return _TYPES[self.program.split("_")[0]]
        if self.attach_type == libbpf.BPF_CGROUP_SETSOCKOPT:
            return libbpf.BPF_PROG_TYPE_CGROUP_SOCKOPT
        return libbpf.BPF_PROG_TYPE_TRACING


#: The iterator over all loaded programs.
ROSTER = Load("listed_program", libbpf.BPF_TRACE_ITER, "bpf_iter_bpf_prog")


def load_of(candidate: Candidate) -> Load:
    """How the program that serves a candidate is loaded."""
    attach_type = _ATTACH_TYPES.get(candidate.mechanism, 0)
    if not attach_type or attach_type == libbpf.BPF_CGROUP_SETSOCKOPT:
        return Load(candidate.program, attach_type)
    return Load(candidate.program, attach_type, candidate.target)


class Built(Protocol):
    """The programs, built: on this machine, or ready-made.

    Attributes:
        instead: what to do where the kernel refuses one; empty: nothing.
    """

    instead: str

    def load(self, load: Load) -> int:
        """Loads one; its file descriptor.

        Raises:
            VerifierError: the kernel's refusal.
        """

    def load_all(self, loads: list[Load]) -> dict[Load, int]:
        """Loads these at the same time; what the kernel refuses is left out."""

# SPDX-License-Identifier: Apache-2.0
"""The programs, loaded, and what is said to them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import product

import numpy as np

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.arrays import Arrays
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.compiler import compiled
from otelbpf.kernel.diagnostics import keep_log, last_verdict
from otelbpf.kernel.fields import field_offsets
from otelbpf.kernel.hooks import Candidate, Choice, Mechanism
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.maps import Maps
from otelbpf.kernel.records import RING_ENDS, SWEEP_ORDER, Counter

# That no program but otelbpf's has.
_OUR_MAP = "connection_tags"
# Each request that was seen ends in one of these, or is submitted.
_ENDED = [
    counter
    for counter in Counter
    if counter.name.startswith("LOST_") or counter is Counter.SAMPLED_OUT
]
# What a role's programs at traffic control are called.
_SERVER, _CLIENT = "tc_", "tc_client_"
_ROLES = {"SERVERS": _SERVER, "CLIENTS": _CLIENT}
# Programs that a hook's program continues into, for each role, in the order of enum continuation.
_CONTINUATIONS = ("ingress", "egress", "chunks", "disorder", "kept", "kept_chunks")


def _route_hash() -> dict[str, str]:
    return {
        "ROUTE_HASH_START": f"{secrets.randbits(64)}ull",
        "ROUTE_HASH_FACTOR": f"{secrets.randbits(64) | 1}ull",
    }


def _words_of(name: str) -> str:
    """C for word `i` of the 16 bytes that the kernel has for a name."""
    octets = name.encode().ljust(16, b"\0")
    low, high = (int.from_bytes(octets[at : at + 8], "little") for at in (0, 8))
    return f"((i)?{high}ull:{low}ull)"


def _hash_factors() -> str:
    """C for the odd number that word `i` of a connection's addresses is multiplied by."""
    return (
        "("
        + ":".join(f"(i)=={i}?{secrets.randbits(64) | 1}ull" for i in range(4))
        + (f":{secrets.randbits(64) | 1}ull)")
    )


class Programs:
    """The loaded programs and their maps. Close it to unload them.

    Args:
        choices: what each hook got, from hooks.choose().
        definitions: what is measured, and how: macro -> C. SERVERS and CLIENTS say for which roles
            there are programs.
    Raises:
        KernelError: the compiler's, the verifier's or the kernel's refusal.
    """

    def __init__(
        self,
        btf: Btf,
        choices: tuple[Choice, ...],
        limits: Limits,
        definitions: Mapping[str, object],
    ) -> None:
        self.limits = limits
        self._roles = tuple(role for macro, role in _ROLES.items() if definitions[macro])
        self._loaded: dict[_Load, int] = {}
        self._fence: int | None = None
        with contextlib.ExitStack() as stack:
            self._make(stack, btf, choices, definitions)
            self._close = stack.pop_all()

    def _make(
        self,
        stack: contextlib.ExitStack,
        btf: Btf,
        choices: tuple[Choice, ...],
        definitions: Mapping[str, object],
    ) -> None:
        self._arrays = Arrays(self.limits)
        stack.callback(self._arrays.close)
        self._counts = self._arrays.map_counts()
        self._settings = self._arrays.map_settings()
        self._ring_ends = MappedArray(self.map_fd("ring_ends"), RING_ENDS, 1)
        for mapped in (self._counts, self._settings, self._ring_ends):
            stack.callback(mapped.close)
        self._maps = Maps({**definitions, **self._arrays.macros()})
        stack.callback(self._maps.close)
        stack.callback(self._close_descriptors)
        self._instructions = compiled(
            {
                **field_offsets(btf),
                **self._arrays.macros(),
                **self._maps.macros(),
                "HASH_FACTOR(i)": _hash_factors(),
                **_route_hash(),
                "OUR_MAP_NAME(i)": _words_of(_OUR_MAP),
                **definitions,
            }
        )
        self._target_ids = _target_ids(btf, choices)
        # Their place follows from their role and from what they go on with.
        places = {
            role + name: place
            for place, (role, name) in enumerate(product(_ROLES.values(), _CONTINUATIONS))
            if role in self._roles
        }
        wanted = [_Load(program) for program in (*places, "sweep", "learn_agent")]
        for choice in choices:
            if choice.chosen is not None and choice.chosen.mechanism is not Mechanism.TC:
                wanted.append(_load_of(choice.chosen))
        self._load_side_by_side(wanted)
        for program, place in places.items():
            self._maps.put("continuations", place, _fd_value(self.fd(program)))
        libbpf.run_once(self.fd("learn_agent"), context=bytes(8))

    def tc_fds(self, direction: str) -> dict[str, int]:
        """Program -> file descriptor, of all that watch traffic control in one direction.

        Args:
            direction: "ingress" or "egress".
        Raises:
            KernelError: the kernel refused one.
        """
        return {role + direction: self.fd(role + direction) for role in self._roles}

    def fd(self, program: str) -> int:
        """The file descriptor of a program that is not bound to one target.

        Raises:
            KernelError: the kernel refused it.
        """
        return self._load(_Load(program))

    def fd_of(self, candidate: Candidate) -> int:
        """The file descriptor of the program that serves a candidate.

        Raises:
            KernelError: the kernel refused it.
        """
        return self._load(_load_of(candidate))

    def roster_fd(self) -> int:
        """The file descriptor of the iterator over all loaded programs.

        Raises:
            KernelError: the kernel refused it.
        """
        return self._load(_ROSTER)

    def loaded(self) -> dict[str, int]:
        """Program -> file descriptor, of all that have been loaded so far."""
        return {load.program: fd for load, fd in self._loaded.items()}

    def map_fd(self, name: str) -> int:
        """The file descriptor of an array's map."""
        return self._arrays.fds[name]

    def counts(self) -> dict[Counter, int]:
        """What the programs have counted so far, summed over the CPUs."""
        sums = self._counts.values["counts"].sum(axis=0)
        counts = {counter: int(sums[counter]) for counter in Counter}
        return counts | {Counter.SUBMITTED: int(self._ring_ends.values["submitted"][0])}

    def in_flight(self) -> int:
        """How many requests are in flight, or were a moment ago; 0 is certain."""
        # What has ended is looked at first: what ends or begins meanwhile is counted as in flight.
        counts = self._counts.values["counts"]
        ended = int(counts[:, _ENDED].sum()) + int(self._ring_ends.values["submitted"][0])
        return int(counts[:, Counter.SEEN].sum()) - ended

    def sweep(
        self, slot: int, waited_ktime_ns: int, idle_ktime_ns: int, *, stopped: bool = False
    ) -> None:
        """Ends the request in `slot` where nothing else will.

        Args:
            waited_ktime_ns: if it was silent since, it has waited for what should follow at once.
            idle_ktime_ns: if it was silent since, and its socket is not known to be open, it was
                so for too long.
            stopped: the agent stops: whatever it waits for.
        """
        order = np.array((waited_ktime_ns, idle_ktime_ns, slot, stopped), SWEEP_ORDER)
        self._maps.put("sweep_orders", 0, order.tobytes())
        libbpf.run_once(self.fd("sweep"), data=bytes(64))

    def wait_for_running(self) -> None:
        """Returns once all programs that run now have ended.

        The kernel waits for them before who changes a map of maps goes on, since 4.20, commit
        1ae80cf31938 (bpf: wait for running BPF programs when updating map-in-map): for this.
        """
        if self._fence is None:
            self._fence = libbpf.create_map_of_maps("fence", self._maps.fds["overflow_places"])
        inner = self._maps.fds["overflow_places"]
        libbpf.update_map(self._fence, bytes(4), _fd_value(inner))

    def set_overflow_place(self, is_client: int, place: bytes) -> None:
        """Tells the programs where those are added up whose series has no place of its own.

        Args:
            place: struct series_place, bpf/abi/records.h.
        """
        self._maps.put("overflow_places", is_client, place)

    def set_complete(self, is_complete: bool) -> None:
        """Tells the programs if all is attached: bytes that they do not see are missed then."""
        self._settings.values["is_complete"] = is_complete

    def set_python_site(self, index: int, site: bytes) -> None:
        """Tells the programs of Python's handlers what a place is for.

        Args:
            site: struct python_site, bpf/abi/settings.h.
        """
        self._maps.put("python_sites", index, site)

    def set_thread_local(self, pid: int, where: bytes) -> bool:
        """Tells the programs where the threads of a process say which span they work on.

        Args:
            where: struct thread_variable, bpf/abi/settings.h.
        Returns:
            Is there room for it?
        """
        try:
            self._maps.put("thread_locals", pid, where)
        except OSError:
            return False
        self._settings.values["has_thread_locals"] = 1
        return True

    def forget_thread_local(self, pid: int) -> None:
        """Takes that back."""
        with contextlib.suppress(OSError):
            self._maps.delete("thread_locals", pid)

    def close(self) -> None:
        """Unloads everything that is not attached any more."""
        self._close.close()

    def _close_descriptors(self) -> None:
        for fd in self._loaded.values():
            os.close(fd)
        self._loaded.clear()
        if self._fence is not None:
            os.close(self._fence)
            self._fence = None

    def _load_side_by_side(self, wanted: list[_Load]) -> None:
        """Loads in threads, since the verifier takes long over some programs.

        What the kernel refuses here is refused again, and told, when it is asked for.
        """
        with ThreadPoolExecutor() as pool:
            wait([pool.submit(self._load_once, load) for load in dict.fromkeys(wanted)])

    def _load(self, load: _Load) -> int:
        if load in self._loaded:
            return self._loaded[load]
        try:
            return self._load_once(load)
        except libbpf.VerifierError as refusal:
            raise KernelError(
                f"the kernel refused program {load} ({refusal}): {last_verdict(refusal.log)}; "
                + keep_log(load.program, refusal.log)
            ) from refusal

    def _load_once(self, load: _Load) -> int:
        fd = libbpf.load_program(
            load.program,
            self._instructions[load.program],
            _type_of(load),
            load.attach_type or 0,
            self._target_ids.get((load.attach_type or 0, load.target), 0),
        )
        self._loaded[load] = fd
        return fd


@dataclass(frozen=True)
class _Load:
    """A program as it is loaded: a typed one anew for each target.

    Attributes:
        attach_type: of a program that is loaded for one; None for all others.
    """

    program: str
    attach_type: int | None = None
    target: str = ""

    def __str__(self) -> str:
        return f"{self.program} for {self.target}" if self.target else self.program


_ROSTER = _Load("listed_program", libbpf.BPF_TRACE_ITER, "bpf_iter_bpf_prog")
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


def _load_of(candidate: Candidate) -> _Load:
    attach_type = _ATTACH_TYPES.get(candidate.mechanism)
    if attach_type is None:
        return _Load(candidate.program)
    return _Load(candidate.program, attach_type, candidate.target)


def _type_of(load: _Load) -> int:
    if load.attach_type is None:
        return _TYPES[load.program.split("_")[0]]
    if load.attach_type == libbpf.BPF_CGROUP_SETSOCKOPT:
        return libbpf.BPF_PROG_TYPE_CGROUP_SOCKOPT
    return libbpf.BPF_PROG_TYPE_TRACING


def _fd_value(fd: int) -> bytes:
    """A descriptor as the value of a map of programs or of maps."""
    return fd.to_bytes(4, "little")


def _target_ids(btf: Btf, choices: tuple[Choice, ...]) -> dict[tuple[int, str], int]:
    """The BTF ids of what typed programs may be loaded for, by attach type and name."""
    ids = {}
    if btf.has_function(_ROSTER.target):
        ids[libbpf.BPF_TRACE_ITER, _ROSTER.target] = btf.function_id(_ROSTER.target)
    for choice in choices:
        for candidate in (v.candidate for v in choice.verdicts if v.available):
            if candidate.mechanism is Mechanism.FENTRY:
                id_ = btf.function_id(candidate.target)
                ids[libbpf.BPF_TRACE_FENTRY, candidate.target] = id_
            elif candidate.mechanism is Mechanism.TRACEPOINT:
                id_ = btf.tracepoint_id(candidate.target)
                ids[libbpf.BPF_TRACE_RAW_TP, candidate.target] = id_
    return ids

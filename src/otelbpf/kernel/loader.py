# SPDX-License-Identifier: Apache-2.0
"""The programs, loaded, and what is said to them."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Mapping
from itertools import product

import numpy as np

from otelbpf.errors import KernelError, RefusedError
from otelbpf.kernel import libbpf
from otelbpf.kernel.arrays import Arrays
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.compiler import Compiled
from otelbpf.kernel.diagnostics import keep_log, last_verdict
from otelbpf.kernel.hooks import Candidate, Choice, Mechanism, takes_filters
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.loads import ROSTER, Built, Load, load_of
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.maps import Maps
from otelbpf.kernel.objects import Object
from otelbpf.kernel.records import (
    RING_ENDS,
    SETTINGS,
    SWEEP_ORDER,
    UPSTREAM,
    Counter,
    SamplerKeeps,
    SweepResult,
)
from otelbpf.kernel.series_rows import SeriesRows
from otelbpf.kernel.settings import Part, Settings

_HASH_FACTORS = SETTINGS["hash_factors"].shape[0]
# What a program of traffic control can be run on.
_NO_PACKET = bytes(64)
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
_ROLES = {Part.SERVERS: _SERVER, Part.CLIENTS: _CLIENT}
# Programs that a hook's program continues into, for each role, in the order of enum continuation.
_CONTINUATIONS = (
    "ingress",
    "egress",
    "chunks",
    "disorder",
    "kept",
    "kept_chunks",
    "admit",
    "grant",
    "repeated",
)


def _drawn_by_lot() -> dict[str, object]:
    """Of struct settings, what nobody outside may foretell. Factors are odd."""
    return {
        "route_hash_start": secrets.randbits(64),
        "route_hash_factor": secrets.randbits(64) | 1,
        "hash_factors": [secrets.randbits(64) | 1 for _ in range(_HASH_FACTORS)],
    }


def _words_of(name: str) -> np.ndarray:
    """The 16 bytes that the kernel has for a name."""
    return np.frombuffer(name.encode().ljust(16, b"\0"), np.uint64)


class Programs:
    """The loaded programs and their maps. Close it to unload them.

    Args:
        choices: what each hook got, from hooks.choose().
        settings: what is measured, and how.
        loader: where the programs come from, OBJECT or BCC.
    Raises:
        RefusedError: the verifier refused one that is always needed.
        KernelError: the compiler's or the kernel's refusal.
    """

    def __init__(
        self,
        btf: Btf,
        choices: tuple[Choice, ...],
        limits: Limits,
        settings: Settings,
        loader: Loader = Loader.OBJECT,
    ) -> None:
        self.limits = limits
        self._roles = tuple(role for part, role in _ROLES.items() if part in settings.parts)
        self._loaded: dict[Load, int] = {}
        with contextlib.ExitStack() as stack:
            self._make(stack, btf, choices, settings, loader)
            self._close = stack.pop_all()

    def _make(
        self,
        stack: contextlib.ExitStack,
        btf: Btf,
        choices: tuple[Choice, ...],
        settings: Settings,
        loader: Loader,
    ) -> None:
        self._arrays = Arrays(self.limits, keeps_forwarded=bool(settings.forwarded_header))
        stack.callback(self._arrays.close)
        self._counts = self._arrays.map_counts()
        self._settings = self._arrays.map_settings()
        self._ring_ends = MappedArray(self.map_fd("ring_ends"), RING_ENDS, 1)
        for mapped in (self._counts, self._settings, self._ring_ends):
            stack.callback(mapped.close)
        self._maps = Maps(settings.parts)
        stack.callback(self._maps.close)
        # Made now: the agent gives up the right to make maps before it needs this one.
        self._fence = libbpf.create_map_of_maps("fence", self._maps.fds["overflow_places"])
        stack.callback(os.close, self._fence)
        stack.callback(self._close_descriptors)
        self._tell(settings)
        self._built = self._build(btf, choices, settings, loader)
        # Their place follows from their role and from what they go on with.
        places = {
            role + name: place
            for place, (role, name) in enumerate(product(_ROLES.values(), _CONTINUATIONS))
            if role in self._roles
        }
        wanted = [Load(program) for program in (*places, "sweep", "learn_agent")]
        if not takes_filters(choices):
            wanted.append(ROSTER)  # which looks after links
        for choice in choices:
            if choice.chosen is not None and choice.chosen.mechanism is not Mechanism.TC:
                wanted.append(load_of(choice.chosen))
        # What the kernel refuses here is refused again, and told, when it is asked for.
        self._loaded |= self._built.load_all(list(dict.fromkeys(wanted)))
        for program, place in places.items():
            self._maps.put("continuations", place, _fd_value(self.fd(program)))
        libbpf.run_once(self.fd("learn_agent"), context=bytes(8))

    def _build(
        self, btf: Btf, choices: tuple[Choice, ...], settings: Settings, loader: Loader
    ) -> Built:
        parts = settings.parts
        configuration = {
            "servers": Part.SERVERS in parts,
            "clients": Part.CLIENTS in parts,
            "go_handlers": Part.GO_HANDLERS in parts,
            "proxy_networks": len(settings.proxy_networks),
            "forwarded_header": settings.forwarded_header,
            **self._arrays.lengths(),
        }
        if loader is Loader.BCC:
            if settings.forwarded_header:
                raise KernelError(
                    "--forwarded-by needs the ready-made programs: what BCC compiles for it is "
                    "more than a kernel's verifier looks at; leave it out, or --loader bcc"
                )
            return Compiled(btf, choices, configuration, self._arrays.fds, self._maps.fds)
        return Object(configuration, self._arrays.fds, self._maps.fds)

    def _tell(self, settings: Settings) -> None:
        """Before any program runs."""
        told = {**settings.values, **_drawn_by_lot(), "our_map_name": _words_of(_OUR_MAP)}
        for name, value in told.items():
            self._settings.values[name] = value
        with contextlib.closing(self._arrays.map_ports("measured_ports")) as measured:
            measured.values[0, list(settings.ports)] = True
        with contextlib.closing(self._arrays.map_ports("upstream_ports")) as upstream:
            for port, meaning in settings.upstream_ports.items():
                upstream.values[0, port] = meaning
        with contextlib.closing(self._arrays.map_proxy_networks()) as networks:
            for place, network in enumerate(settings.proxy_networks):
                networks.values[place] = network
        for address, port in settings.upstreams:
            self._maps.put("upstreams", np.array((address, port, 0), UPSTREAM).tobytes(), bytes(1))

    def tc_fds(self, direction: str) -> dict[str, int]:
        """Program -> file descriptor, of all that watch traffic control in one direction.

        Args:
            direction: "ingress" or "egress".
        Raises:
            RefusedError: the kernel refused one.
        """
        return {role + direction: self.fd(role + direction) for role in self._roles}

    def fd(self, program: str) -> int:
        """The file descriptor of a program that is not bound to one target.

        Raises:
            RefusedError: the kernel refused it.
        """
        return self._load(Load(program))

    def multi_fd(self, program: str) -> int:
        """The file descriptor of a program of uprobes, for one link that is many of them.

        Raises:
            RefusedError: the kernel refused it.
        """
        return self._load(Load(program, libbpf.BPF_TRACE_UPROBE_MULTI))

    def fd_of(self, candidate: Candidate) -> int:
        """The file descriptor of the program that serves a candidate.

        Raises:
            RefusedError: the kernel refused it.
        """
        return self._load(load_of(candidate))

    def roster_fd(self) -> int:
        """The file descriptor of the iterator over all loaded programs.

        Raises:
            RefusedError: the kernel refused it.
        """
        return self._load(ROSTER)

    def loaded(self) -> dict[str, int]:
        """Program -> file descriptor, of all that have been loaded so far."""
        return {load.program: fd for load, fd in self._loaded.items()}

    def map_fd(self, name: str) -> int:
        """The file descriptor of an array's map."""
        return self._arrays.fds[name]

    @property
    def series_rows(self) -> SeriesRows:
        """Which rows of the table of sums each series has."""
        return self._arrays.series_rows

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

    def sweep(self, waited_ktime_ns: int, idle_ktime_ns: int, *, stopped: bool = False) -> int:
        """Ends requests in flight where nothing else will; tells how many.

        Args:
            waited_ktime_ns: who was silent since has waited for what should follow at once.
            idle_ktime_ns: who was silent since, and whose socket is not known to be open, was so
                for too long.
            stopped: the agent stops: whatever they wait for.
        """
        order = np.array((waited_ktime_ns, idle_ktime_ns, 0, stopped), SWEEP_ORDER)
        self._maps.put("sweep_orders", 0, order.tobytes())
        fd, ended = self.fd("sweep"), 0
        while (result := libbpf.run_once(fd, data=_NO_PACKET)) != SweepResult.THROUGH:
            ended += result == SweepResult.ENDED_ONE
        return ended

    def wait_for_running(self) -> None:
        """Returns once all programs that run now have ended.

        The kernel waits for them before who changes a map of maps goes on, since 4.20, commit
        1ae80cf31938 (bpf: wait for running BPF programs when updating map-in-map): for this.
        """
        inner = self._maps.fds["overflow_places"]
        libbpf.update_map(self._fence, bytes(4), _fd_value(inner))

    def set_overflow_place(self, is_client: int, place: bytes) -> None:
        """Tells the programs where those are added up whose series has no place of its own.

        Args:
            place: struct series_place, bpf/abi/records.h.
        """
        self._maps.put("overflow_places", is_client, place)

    def set_sampler(self, values: Mapping[str, int]) -> None:
        """Tells the programs which requests are kept, while they run.

        Args:
            values: of fields of struct settings, from Sampler.settings().
        """
        keeps = "sampler_keeps"
        # Who keeps some looks at the bound, which is right by then.
        last = keeps if values[keeps] == SamplerKeeps.SOME else ""
        for name in sorted(values, key=lambda each: (each == last, each != keeps)):
            self._settings.values[name] = values[name]

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

    def _load(self, load: Load) -> int:
        if load in self._loaded:
            return self._loaded[load]
        try:
            self._loaded[load] = fd = self._built.load(load)
        except libbpf.VerifierError as refusal:
            raise RefusedError(
                f"the kernel refused program {load} ({refusal}), and its verifier's last words "
                f'are "{last_verdict(refusal.log)}"',
                self._built.instead,
                keep_log(load.program, refusal.log),
            ) from refusal
        return fd


def _fd_value(fd: int) -> bytes:
    """A descriptor as the value of a map of programs or of maps."""
    return fd.to_bytes(4, "little")

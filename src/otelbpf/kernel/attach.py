# SPDX-License-Identifier: Apache-2.0
"""Attaches loaded programs to their hooks, and takes them off again.

Links are preferred: the kernel takes them down when the process ends, even by
SIGKILL. Where it has none for TC, a filter with a handle of our own goes on the
clsact qdisc. A program that is not ours is never replaced.

What looked best may fail: the kernel refuses it after all, or takes it and never
runs it, because the compiler inlined the function where it matters. Then the
next candidate's turn comes.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from otelbpf.errors import KernelError
from otelbpf.host.interfaces import Xdp
from otelbpf.host.netns import Netns
from otelbpf.host.processes import cgroup_directory
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.hooks import Candidate, Choice, Hook, Mechanism, require, takes_filters
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.on_interface import OnInterface, Ways
from otelbpf.kernel.rehearsal import silent_programs
from otelbpf.kernel.tcx import Tcx


@dataclass
class _Probe:
    """A hook's program, attached.

    Attributes:
        link: its file descriptor.
        stack: closing it detaches.
    """

    choice: Choice
    candidate: Candidate
    program: int
    link: int
    stack: contextlib.ExitStack

    def missed(self) -> int:
        missed = bpf_info.program_info(self.program).missed
        if self.candidate.mechanism is Mechanism.KPROBE:
            missed += bpf_info.kprobe_missed(self.link)
        return missed


class Attachments:
    """All that is attached, as a context manager: leaving it detaches everything."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._probes: list[_Probe] = []
        self._nothing_for: list[Choice] = []
        self._ways: Ways | None = None
        #: What is attached to interfaces, in that order.
        self.on_interfaces: list[OnInterface] = []

    def __enter__(self) -> Attachments:
        return self

    def __exit__(self, *_: object) -> None:
        while self.on_interfaces:
            self.detach_from(self.on_interfaces[-1])
        self._stack.close()

    @property
    def description(self) -> list[str]:
        """For people: what was attached where."""
        on_hooks = [str(probe.candidate) for probe in self._probes]
        on_interfaces = [each for on in self.on_interfaces for each in on.description]
        return on_hooks + on_interfaces

    @property
    def fallbacks(self) -> list[str]:
        """For people: which hooks did not get what looked best, and why."""
        return [
            f"{choice.hook.name}: {verdict}"
            for choice in (probe.choice for probe in self._probes)
            for verdict in choice.passed_over
            if verdict.tried
        ]

    @property
    def absent(self) -> list[str]:
        """For people: the stamps that no request will have, or none on an interface, and why."""
        left_alone = [on.left_alone for on in self.on_interfaces if on.left_alone]
        return self._nothing_gives(lambda hook: hook.stamps) + left_alone

    @property
    def unmeasured(self) -> list[str]:
        """For people: what metrics will do without, and why."""
        return self._nothing_gives(lambda hook: hook.measures)

    def _nothing_gives(self, what: Callable[[Hook], tuple[str, ...]]) -> list[str]:
        return [
            f"{', '.join(what(choice.hook))}: {'; '.join(map(str, choice.verdicts))}"
            for choice in self._nothing_for
            if what(choice.hook) and not choice.hook.not_everywhere
        ]

    def missed(self) -> dict[str, int]:
        """How often a hook was passed and its program not run, as far as the kernel tells.

        That happens where a program of the same kind was running on that processor already.
        """
        return {str(probe.candidate): probe.missed() for probe in self._probes}

    def attach_all(
        self,
        programs: Programs,
        choices: tuple[Choice, ...],
        interfaces: dict[str, int],
        netns: Netns,
        xdp: Xdp,
    ) -> None:
        """Attaches, for each hook, the best candidate that works.

        Interfaces come last and ingress after all else, so that a request is
        first seen when every later hook is already there to stamp it.

        Raises:
            KernelError: a hook refused, or an interface is gone; what was attached before is
            detached when the context is left.
        """
        self._attach_probes(programs, choices)
        by_name = {choice.hook.name: choice for choice in choices}
        tcx = None
        if not takes_filters(choices):
            tcx = self._stack.enter_context(contextlib.closing(Tcx(programs)))
        self._ways = Ways(programs, by_name, netns, xdp, tcx)
        for name, ifindex in interfaces.items():
            with _unless_gone(name, ifindex, netns):
                self._attach_to(name, ifindex, insist=xdp is Xdp.ON)
        if not by_name["arrival"].chosen:
            self._nothing_for.append(by_name["arrival"])

    def attach_again(self, name: str, ifindex: int) -> OnInterface:
        """Attaches to an interface that has come again, as to the first of its name.

        It is measured without XDP if need be, which its `left_alone` then tells.

        Raises:
            KernelError: the kernel refused, and nothing is attached to it.
        """
        return self._attach_to(name, ifindex, insist=False)

    def _attach_to(self, name: str, ifindex: int, *, insist: bool) -> OnInterface:
        assert self._ways is not None, "nothing was attached yet"
        on = OnInterface(self._ways, name, ifindex)
        self.on_interfaces.append(on)
        try:
            on.attach_xdp(insist=insist)
        except BaseException:
            self.detach_from(on)
            raise
        return on

    def detach_from(self, on: OnInterface) -> None:
        """Detaches from one interface, be it gone."""
        self.on_interfaces.remove(on)
        on.close()

    def _attach_probes(self, programs: Programs, choices: tuple[Choice, ...]) -> None:
        """Attaches to the kernel's code, and goes on to the next best where nothing comes of it."""
        waiting = [c for c in choices if not c.hook.on_interface]
        while waiting:
            probes = [probe for choice in waiting if (probe := self._attach_best(programs, choice))]
            silent = silent_programs(
                [probe.program for probe in probes if probe.choice.hook.passed_by_all]
            )
            waiting = []
            for probe in probes:
                if probe.program not in silent:
                    self._probes.append(probe)
                    self._stack.push(probe.stack)
                    continue
                probe.stack.close()
                waiting.append(
                    probe.choice.without(
                        probe.candidate,
                        "it was attached, but an exchange over TCP did not pass it",
                    )
                )

    def _attach_best(self, programs: Programs, choice: Choice) -> _Probe | None:
        """The first candidate that the kernel takes; None where there is none.

        Raises:
            KernelError: there is none, and no ledger without it.
        """
        while choice.chosen is not None:
            candidate = choice.chosen
            with contextlib.ExitStack() as stack:
                try:
                    fd = programs.fd_of(candidate)
                    link = _attach_probe(stack, candidate, fd)
                except KernelError as error:
                    choice = choice.without(candidate, str(error))
                except OSError as error:
                    reason = f"the kernel would not attach it: {error.strerror}"
                    choice = choice.without(candidate, reason)
                else:
                    return _Probe(choice, candidate, fd, link, stack.pop_all())
        require((choice,))
        self._nothing_for.append(choice)
        return None


@contextlib.contextmanager
def _unless_gone(name: str, ifindex: int, netns: Netns) -> Iterator[None]:
    """Each way of attaching has its own error for an interface that is gone; here all have one."""
    try:
        yield
    except (KernelError, OSError) as error:
        try:
            netns.run(lambda: socket.if_indextoname(ifindex))
        except OSError:
            raise KernelError(
                f"cannot attach to interface {name}: it was removed while otelbpf was loading",
                "start otelbpf again when it is there",
            ) from error
        raise


def _attach_probe(stack: contextlib.ExitStack, candidate: Candidate, fd: int) -> int:
    """Attaches a program to the kernel's code until `stack` is closed; gives its link."""
    if candidate.mechanism is Mechanism.KPROBE:
        link, event = libbpf.attach_kprobe(candidate.target, fd)
        stack.callback(os.close, event)
    elif candidate.mechanism is Mechanism.CGROUP:
        directory = cgroup_directory()
        assert directory is not None
        link = libbpf.attach_cgroup(directory, fd)
    else:
        link = libbpf.attach_tracing(fd)
    stack.callback(os.close, link)
    return link


@contextlib.contextmanager
def attached(
    programs: Programs,
    choices: tuple[Choice, ...],
    interfaces: dict[str, int],
    netns: Netns,
    xdp: Xdp = Xdp.ON,
) -> Iterator[Attachments]:
    """Everything attached for the length of a `with` block."""
    with Attachments() as attachments:
        attachments.attach_all(programs, choices, interfaces, netns, xdp)
        yield attachments

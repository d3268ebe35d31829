# SPDX-License-Identifier: Apache-2.0
"""TC by tcx links: a line of programs that packets meet one after the other, since Linux 6.6.

Ours are to be the first: a program that decides about a packet ends the line, while ours always
hand on.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable

from otelbpf.errors import KernelError
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.lines import Stranger
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.roster import Listed, Roster

_ATTACH_TYPES = {"ingress": libbpf.BPF_TCX_INGRESS, "egress": libbpf.BPF_TCX_EGRESS}
# What a program is called that only keeps a place in a line.
_PLACE = "otelbpf_place"
_PLACES = 2
# mov r0, -1; exit: TC_NEXT.
_HAND_ON = bytes([0xB7, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x95, 0, 0, 0, 0, 0, 0, 0])


class Tcx:
    """What all lines have in common. It takes rights to make it, and none to use it.

    Attributes:
        roster: who else there is.
        places: two programs that do nothing, to keep places in a line with.
    Raises:
        KernelError: the kernel refused.
    """

    def __init__(self, programs: Programs) -> None:
        with contextlib.ExitStack() as stack:
            try:
                self.roster = Roster(programs)
                stack.callback(self.roster.close)
                self.places = tuple(
                    libbpf.load_program(_PLACE, _HAND_ON, libbpf.BPF_PROG_TYPE_SCHED_CLS)
                    for _ in range(_PLACES)
                )
            except OSError as error:
                raise KernelError(
                    f"cannot look after what is attached to TC: {error.strerror}"
                ) from error
            stack.pop_all()

    def close(self) -> None:
        """Gives it back."""
        self.roster.close()
        for fd in self.places:
            os.close(fd)


class TcxLine:
    """Our programs in one direction of an interface, from when it is made until it is closed.

    Args:
        tcx: to be closed later than this.
        fds: of the programs.
        direction: "ingress" or "egress".
        ifindex: in the calling thread's network namespace.
    Raises:
        OSError: the kernel's refusal.
    """

    can_move = True

    def __init__(self, tcx: Tcx, fds: Iterable[int], direction: str, ifindex: int) -> None:
        self._tcx = tcx
        self._attach_type = _ATTACH_TYPES[direction]
        self._ifindex = ifindex
        self._fds = list(fds)
        self._ids = {bpf_info.program_info(fd).id for fd in self._fds}
        self._links: list[int] = []
        try:
            for fd in self._fds:
                self._links.append(self._attach(fd))
        except OSError:
            self.close()
            raise

    def strangers(self) -> list[Stranger] | None:
        """See Line. Other agents of otelbpf are none: their programs hand on as ours do."""
        line = bpf_info.attached_programs(self._ifindex, self._attach_type)
        ours = [place for place, number in enumerate(line) if number in self._ids]
        if len(ours) < len(self._ids):
            return None
        before = [number for number in line[: ours[-1]] if number not in self._ids]
        listed = self._tcx.roster.read() if before else {}
        return [
            Stranger(number, f"program {listed[number].name or 'without a name'} (id {number})")
            for number in before
            # One that is not listed any more has just been unloaded.
            if number in listed and not _is_ours(listed[number])
        ]

    def go_first(self) -> None:
        """See Line. For some microseconds a packet may meet none of ours.

        A program cannot be in a line twice, and to take one off takes milliseconds. So others that
        do nothing keep both places, while ours changes from the one to the other.
        """
        front, back = self._tcx.places
        for at, fd in reversed(list(enumerate(self._fds))):
            link = self._attach(front)
            try:
                libbpf.link_update(self._links[at], back)
                libbpf.link_update(link, fd)
            except OSError:
                os.close(link)
                raise
            self._links[at], link = link, self._links[at]
            os.close(link)

    def is_alive(self) -> bool:
        """See Line."""
        return all(bpf_info.link_ifindex(link) == self._ifindex for link in self._links)

    def close(self) -> None:
        """See Line."""
        while self._links:
            os.close(self._links.pop())

    def _attach(self, fd: int) -> int:
        return libbpf.link_create(fd, self._ifindex, self._attach_type, libbpf.BPF_F_BEFORE)


def _is_ours(program: Listed) -> bool:
    """Those that keep places have no maps to be known by."""
    return program.is_ours or program.name == _PLACE

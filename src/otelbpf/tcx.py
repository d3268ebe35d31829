# SPDX-License-Identifier: Apache-2.0
"""TC by tcx links: a line of programs that packets meet one after the other, since Linux 6.6.

Ours are to be the first: a program that decides about a packet ends the line, while ours always
hand on.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

from otelbpf import bpf_info, libbpf
from otelbpf.lines import Stranger

_ATTACH_TYPES = {"ingress": libbpf.BPF_TCX_INGRESS, "egress": libbpf.BPF_TCX_EGRESS}
# What a program is called that only keeps a place in the line.
_PLACE = "otelbpf_place"
_OURS = ("tc_ingress", "tc_egress", "tc_client_ingre", "tc_client_egres", _PLACE)
# Of a map that no program but otelbpf's has: the kernel keeps 15 characters.
_OUR_MAP = "connection_tags"
# mov r0, -1; exit: TC_NEXT.
_HAND_ON = bytes([0xB7, 0, 0, 0, 0xFF, 0xFF, 0xFF, 0xFF, 0x95, 0, 0, 0, 0, 0, 0, 0])


class TcxLine:
    """Our programs in one direction of an interface, from when it is made until it is closed.

    Args:
        fds: of the programs.
        direction: "ingress" or "egress".
        ifindex: in the calling thread's network namespace.
        places: of load_places().
    Raises:
        OSError: the kernel's refusal.
    """

    can_move = True

    def __init__(
        self, fds: Iterable[int], direction: str, ifindex: int, places: tuple[int, int]
    ) -> None:
        self._attach_type = _ATTACH_TYPES[direction]
        self._ifindex = ifindex
        self._fds = list(fds)
        self._places = places
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
        before = (number for number in line[: ours[-1]] if number not in self._ids)
        return [stranger for number in before if (stranger := _stranger(number)) is not None]

    def go_first(self) -> None:
        """See Line. For some microseconds a packet may meet none of ours.

        A program cannot be in a line twice, and to take one off takes milliseconds. So others that
        do nothing keep both places, while ours changes from the one to the other.
        """
        front, back = self._places
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


def load_places() -> tuple[int, int]:
    """Two programs that do nothing, each to keep a place in a line.

    To load them takes rights, which it does not to go first.

    Raises:
        OSError: the kernel's refusal.
    """
    return libbpf.load_classifier(_PLACE, _HAND_ON), libbpf.load_classifier(_PLACE, _HAND_ON)


def _stranger(number: int) -> Stranger | None:
    """Whose program it is; None for one of otelbpf's, as far as that may be known."""
    try:
        fd = bpf_info.open_program(number)
    except PermissionError:
        return Stranger(number, f"a program (id {number})")
    except OSError:
        return None  # it has just been unloaded
    try:
        info = bpf_info.program_info(fd)
        if info.name in _OURS and (info.name == _PLACE or _OUR_MAP in bpf_info.map_names(fd)):
            return None
        return Stranger(number, f"program {info.name or 'without a name'} (id {number})")
    finally:
        os.close(fd)

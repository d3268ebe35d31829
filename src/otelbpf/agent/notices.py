# SPDX-License-Identifier: Apache-2.0
"""What the kernel's programs notice of connections that are not measured (bpf/links/notices.h)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import numpy as np

from otelbpf.kernel.loader import Programs
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import NOTICES, NoticeKind

_READ_TRIES = 3


@dataclass(frozen=True)
class Notice:
    """A connection that is not measured, and why.

    Attributes:
        ktime_ns: when it was noticed, by CLOCK_MONOTONIC.
        peer: address and port of the other side.
        local: of this side.
        ifindex: of the interface that its bytes came in by, or leave by; 0: not known.
        is_client: is this side the one that asks?
    """

    kind: NoticeKind
    ktime_ns: int
    peer: tuple[str, int]
    local: tuple[str, int]
    ifindex: int
    is_client: bool

    @property
    def port(self) -> int:
        """The measured one: the server's, whichever side that is."""
        return self.peer[1] if self.is_client else self.local[1]


class NoticeReader:
    """Reads each notice once. Close it to unmap them."""

    def __init__(self, programs: Programs) -> None:
        self._mapped = MappedArray(programs.map_fd("notices"), NOTICES, 1)
        notices = self._mapped.values[0]
        # Each look at a field by its name would make one of these anew.
        self._count, self._recent = self._mapped.values["count"], notices["recent"]
        self._read = 0

    def read(self) -> list[Notice]:
        """What is new. Of more than are kept the oldest are forgotten: the counters have all."""
        count, kept = int(self._count[0]), len(self._recent)
        self._read = max(self._read, count - kept)
        new = []
        while self._read < count:
            notice = self._whole(self._recent[self._read % kept])
            if notice is None:
                break  # it is being written, and read next time
            new.append(notice)
            self._read += 1
        return new

    def close(self) -> None:
        """Unmaps them."""
        del self._count, self._recent
        self._mapped.close()

    def _whole(self, place: np.void) -> Notice | None:
        """A copy of what is there; None while it changes."""
        for _ in range(_READ_TRIES):
            copy = place.copy()
            if copy["kind"] and copy == place:
                return _notice(copy)
        return None


def _notice(raw: np.void) -> Notice:
    return Notice(
        NoticeKind(int(raw["kind"])),
        int(raw["ktime_ns"]),
        (_address(raw["peer_address"]), int(raw["peer_port"])),
        (_address(raw["local_address"]), int(raw["local_port"])),
        int(raw["ifindex"]),
        bool(raw["is_client"]),
    )


def _address(raw: np.void) -> str:
    address = ipaddress.IPv6Address(raw.tobytes())
    return str(address.ipv4_mapped or address)

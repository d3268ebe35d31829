# SPDX-License-Identifier: Apache-2.0
"""Each notice of the kernel's is read once, and whole."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator

import numpy as np
import pytest
from kernel_maps import KernelMaps

from otelbpf.agent.notices import Notice, NoticeReader
from otelbpf.kernel.records import NOTICES, NoticeKind

KEPT = 64


class Kernel:
    """Writes notices as bpf/links/notices.h does."""

    def __init__(self) -> None:
        self._maps = KernelMaps()
        self._notices = self._maps.add("notices", NOTICES, 1)
        self.reader = NoticeReader(self._maps)

    def notify(self, port: int, *, kind: int = NoticeKind.TLS, is_client: bool = False) -> None:
        place = self._notices[0]["recent"][int(self._notices[0]["count"]) % KEPT]
        place["ktime_ns"] = 1_000 + port
        for end, address in (("peer", "192.0.2.7"), ("local", "fd00::1")):
            parsed = ipaddress.ip_address(address)
            before = b"" if parsed.version == 6 else bytes(10) + b"\xff\xff"
            place[f"{end}_address"] = before + parsed.packed
        place["peer_port"], place["local_port"] = 9_000 + port, port
        place["ifindex"] = 3
        place["is_client"] = is_client
        place["kind"] = kind
        self._notices[0]["count"] += 1

    def finish(self, port: int) -> None:
        """Writes the last word of a notice that was begun."""
        recent = self._notices[0]["recent"]
        recent["kind"][np.flatnonzero(recent["local_port"] == port)] = NoticeKind.TLS

    def ports(self) -> list[int]:
        return [notice.local[1] for notice in self.reader.read()]

    def close(self) -> None:
        self.reader.close()
        del self._notices
        self._maps.close()


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


def test_what_a_notice_says(kernel: Kernel) -> None:
    kernel.notify(80, kind=NoticeKind.UNSEEN)
    kernel.notify(81, is_client=True)
    of_server, of_client = kernel.reader.read()
    assert of_server == Notice(
        NoticeKind.UNSEEN, 1_080, ("192.0.2.7", 9_080), ("fd00::1", 80), 3, False
    )
    assert (of_server.port, of_client.port) == (80, 9_081)


def test_each_is_read_once(kernel: Kernel) -> None:
    assert kernel.ports() == []
    kernel.notify(1)
    kernel.notify(2)
    assert kernel.ports() == [1, 2]
    assert kernel.ports() == []
    for port in range(100):
        kernel.notify(port)
        assert kernel.ports() == [port]


def test_of_too_many_the_last_ones_are_read(kernel: Kernel) -> None:
    for port in range(200):
        kernel.notify(port)
    assert kernel.ports() == list(range(200 - KEPT, 200))


def test_one_that_is_being_written_is_read_the_next_time(kernel: Kernel) -> None:
    kernel.notify(1)
    kernel.notify(2, kind=0)
    kernel.notify(3)
    assert kernel.ports() == [1]
    kernel.finish(2)
    assert kernel.ports() == [2, 3]

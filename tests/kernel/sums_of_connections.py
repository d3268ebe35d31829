# SPDX-License-Identifier: Apache-2.0
"""What the programs say of all connections, from the moment that begin() was called."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from lab import SERVER_IPV4, SPARE_PORT, Lab, Pair, laboratory
from meter import SMALL, Meter, load, load_gateway
from support.waiting import wait_until

from otelbpf.kernel.limits import Limits
from otelbpf.ledger.request import KINDS, Kind
from otelbpf.metrics.connections import ConnectionSums
from otelbpf.metrics.snapshot import Histogram

LIMITS = Limits(SMALL.connections, SMALL.ring, series=64)


class Sums:
    """Those of one side of the lab's connections, the server's or the client's."""

    def __init__(self, meter: Meter, kind: Kind) -> None:
        self.meter = meter
        self.lab = meter.lab
        self.kind = kind
        self.has_accept = any(c.hook.name == "accept" and c.chosen for c in meter.choices)
        self._table = ConnectionSums(meter.programs, KINDS)
        self.begin()

    def begin(self) -> None:
        self.meter.begin()
        self._before = self._table.snapshot()

    def attached(self) -> AbstractContextManager[list[str]]:
        return self.meter.attached(self.meter.interface, "lo")

    def end(self) -> None:
        """Closes the connections, and waits until all of them are over."""
        self.meter.end()
        for kind in KINDS:
            wait_until(lambda kind=kind: self._all_are_over(kind), "all connections were over",
                       state=functools.partial(self.counts, kind))  # fmt: skip

    def _all_are_over(self, kind: Kind) -> bool:
        grown = self.counts(kind)
        return grown.get("closed", 0) == grown.get("opened", 0) + grown.get("adopted", 0)

    def close(self) -> None:
        self._table.close()
        self.meter.close()

    def own(self, pair: Pair) -> socket.socket:
        """The end that is measured."""
        return pair.server if self.kind is Kind.SERVER else pair.client

    def peer(self, pair: Pair) -> socket.socket:
        return pair.client if self.kind is Kind.SERVER else pair.server

    def counts(self, kind: Kind | None = None) -> dict[str, int]:
        """By how much each has grown, if it has."""
        at = KINDS.index(kind or self.kind)
        before, now = self._before[at].counts, self._table.snapshot()[at].counts
        return {name: now[name] - before[name] for name in now if now[name] != before[name]}

    def expect(self, kind: Kind | None = None, **counts: int) -> None:
        """Waits until just these have grown, and by so much."""
        wait_until(
            lambda: self.counts(kind) == counts,
            f"the connections were {counts}",
            state=functools.partial(self.counts, kind),
        )

    def handshakes(self, kind: Kind | None = None) -> tuple[int, int]:
        """How many, and their sum in ns."""
        return self._grown("handshake", kind)

    def waits(self) -> tuple[int, int]:
        """Those for accept()."""
        return self._grown("accept_queue", None)

    def _grown(self, name: str, kind: Kind | None) -> tuple[int, int]:
        at = KINDS.index(kind or self.kind)
        before, now = (getattr(each[at], name) for each in (self._before, self._table.snapshot()))
        counts = [_count_and_sum(each) for each in (before, now)]
        return counts[1][0] - counts[0][0], counts[1][1] - counts[0][1]


def _count_and_sum(histogram: Histogram | None) -> tuple[int, int]:
    return (histogram.count, histogram.sum_ns) if histogram is not None else (0, 0)


@contextmanager
def loaded_sums(kind: Kind) -> Iterator[Sums]:
    """A lab of its own; the programs that measure one side of it are not attached yet."""
    with laboratory() as lab:
        server = kind is Kind.SERVER
        sums = Sums(load(lab, LIMITS) if server else load_gateway(lab, limits=LIMITS), kind)
        try:
            yield sums
        finally:
            sums.close()


def spare_listener(lab: Lab, port: int = SPARE_PORT, backlog: int = 5) -> socket.socket:
    """One that goes at the end of the test."""
    listener = lab.socket("server", socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((SERVER_IPV4, port))
    listener.listen(backlog)
    return listener

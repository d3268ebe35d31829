# SPDX-License-Identifier: Apache-2.0
"""All requests in sums, at one moment: what metrics and tables are made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from opentelemetry.sdk.resources import Resource

from otelbpf.kernel.records import HistogramBucket
from otelbpf.ledger.request import Kind
from otelbpf.ledger.tally import Sums

#: OTLP's scale of the buckets: eight to each doubling, so that each is 9% wide.
SCALE = int(HistogramBucket.SCALE)
_PER_OCTAVE = 1 << SCALE
_SHORTEST_LOG2_S = int(HistogramBucket.SHORTEST_LOG2_S)
#: Bucket 0, up to 119 ns, and eight for each octave. The last has all that is longer than 2.3
#: hours, too.
BUCKETS = int(HistogramBucket.BUCKETS)
#: OTLP's index, for durations in seconds, of bucket 1.
FIRST_INDEX = _SHORTEST_LOG2_S * _PER_OCTAVE
#: (BUCKETS,) float64: bucket i holds durations above upper[i - 1] and up to upper[i].
UPPER_S = 2.0 ** (_SHORTEST_LOG2_S + np.arange(BUCKETS) / _PER_OCTAVE)
UPPER_NS = 1e9 * UPPER_S
_LAST_WITHIN_NS = np.floor(UPPER_NS[:-1]).astype(np.int64)


def buckets_of(durations_ns: np.ndarray) -> np.ndarray:
    """(n,) the bucket of each duration; exact to the nanosecond, as the kernel counts them."""
    return np.searchsorted(_LAST_WITHIN_NS, durations_ns, side="left")


@dataclass(frozen=True, eq=False)
class Histogram:
    """Durations.

    Attributes:
        sum_ns: of them all.
        counts: (BUCKETS,) uint64.
    """

    sum_ns: int
    counts: np.ndarray

    @property
    def count(self) -> int:
        """How many they are."""
        return int(self.counts.sum())

    @property
    def mean_ns(self) -> float:
        """Their mean; 0: of nothing."""
        return self.sum_ns / self.count if self.count else 0.0

    def quantile_ns(self, q: float) -> float:
        """The upper bound of the bucket in which the q-quantile is, 0 < q <= 1; 0: of nothing."""
        if not self.count:
            return 0.0
        return float(UPPER_NS[np.searchsorted(self.counts.cumsum(), q * self.count)])


def no_durations() -> Histogram:
    """Of nothing."""
    return Histogram(0, np.zeros(BUCKETS, np.uint64))


@dataclass(frozen=True)
class SeriesKey:
    """What the requests of a series have in common.

    Attributes:
        kind: what this side is to them.
        resource: of the service; it names no single process.
        method: one that the conventions know, or `_OTHER`.
        route: a template.
        status: of the response; 0: cut short before that was whole.
        ended_by: how it was cut short; empty: it was not.
        server_port: this side's for a server, the upstream's for a client.
        server_address: the upstream's; empty for a server.
        overflow: of all for which there was no series left; of the rest only `kind` is said.
    """

    kind: Kind
    resource: Resource
    method: str = ""
    route: str = ""
    status: int = 0
    ended_by: str = ""
    server_port: int = 0
    server_address: str = ""
    overflow: bool = False


@dataclass(frozen=True)
class Exemplar:
    """One request of a series that has become spans."""

    trace_id: int
    span_id: int
    duration_ns: int
    unix_ns: int


@dataclass(frozen=True, eq=False)
class Series:
    """All requests that have the same key.

    Attributes:
        request_bytes, response_bytes: on the wire, heads included.
        retransmits: segments, of both directions.
        out_of_order: segments that came early.
        duration: from the first stamp to the request's end; its count is that of the requests.
        stages: by name, as in `nic_to_tc`.
        acked: from a response's end until the client's TCP acknowledged it; of servers.
        exemplars: the most recent ones.
        since_unix_ns: what it has is of after this; 0: of after the agent's start. A series that
            has ended may begin again, and its earlier requests are in the overflow.
    """

    key: SeriesKey
    request_bytes: int
    response_bytes: int
    retransmits: int
    out_of_order: int
    duration: Histogram
    stages: dict[str, Histogram]
    acked: Histogram
    exemplars: tuple[Exemplar, ...] = ()
    since_unix_ns: int = 0


@dataclass(frozen=True, eq=False)
class Connections:
    """The connections to measured ports, or those to upstreams, since the agent was started.

    Attributes:
        counts: by what became of them:
            opened: their handshake was seen to end;
            adopted: first seen by a request, as those older than the agent, and those for another
                port than their socket's;
            closed: opened or adopted, and over;
            reset: ended by a RST, whoever sent it;
            reset_by_peer: those of them where the other side did;
            refused: a RST was the answer to the SYN, or to the end of the handshake (nobody
                listens; or the accept queue is full and net.ipv4.tcp_abort_on_overflow set);
            unanswered: of servers, those whose SYN came again and no answer to it had left: it
                was dropped here, and they may have been opened later. One whose client did not
                ask again is not known. Of clients, those given up before there was an answer.
        handshake: of those opened whose SYN was seen, and not forgotten in a flood of SYNs: from
            the first SYN, at traffic control, until TCP has taken what ends the handshake: the
            client's acknowledgement, or for a client the server's SYN and ACK.
        accept_queue: from there until accept() gives the socket to the application. None: there
            was no such wait, or the kernel offers no hook that tells of it.
    """

    kind: Kind
    counts: dict[str, int] = field(default_factory=dict)
    handshake: Histogram | None = None
    accept_queue: Histogram | None = None


@dataclass(frozen=True, eq=False)
class Snapshot:
    """Everything at one moment.

    Attributes:
        start_unix_ns: since when all is counted.
        unix_ns: when it was taken.
        resource: the agent's own, which its counters belong to.
        sums: what became of all requests.
        ended: how many requests are missing from the series, by kind, since their receiver was told
            of them under series that have ended; as the agent takes it none is missing.
    """

    start_unix_ns: int
    unix_ns: int
    resource: Resource
    series: tuple[Series, ...]
    connections: tuple[Connections, ...]
    sums: Sums
    ended: Mapping[Kind, int] = field(default_factory=dict)

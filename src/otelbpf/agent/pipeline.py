# SPDX-License-Identifier: Apache-2.0
"""The whole way on one page: kernel record -> request -> span -> exporter."""

from __future__ import annotations

import numpy as np
from opentelemetry.sdk.resources import Resource

from otelbpf.agent.config import Config
from otelbpf.export.sender import Sender
from otelbpf.export.ways_out import WayOut
from otelbpf.host.clock import ClockReading, read_clock
from otelbpf.host.processes import NOBODY, Process
from otelbpf.host.resource import Resources
from otelbpf.kernel.records import PROCESS, RequestFlag
from otelbpf.kernel.rows import octets_of
from otelbpf.ledger.batch import SPANS_MOST, Requests
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.ignored import Ignored
from otelbpf.ledger.tally import Tally
from otelbpf.ledger.trace_contexts import contexts_of
from otelbpf.metrics.series import SeriesTable
from otelbpf.traces.description import StageStyle

# Whose a request is, and by which port: 0 is a client's.
_WHOSE = np.dtype([("process", PROCESS), ("pid", np.uint32), ("port", np.uint32)])


class Pipeline:
    """From records to the exporter's queue. Knows nothing of the kernel.

    Args:
        way_out: for spans; None throws them away.
        series: adds up what the kernel has not; None: nothing is added up.
    """

    def __init__(
        self,
        config: Config,
        ids: Ids,
        resources: Resources,
        way_out: WayOut[Requests] | None,
        series: SeriesTable | None = None,
    ) -> None:
        self._ids = ids
        self.resources = resources
        self._series = series
        self._ignored = Ignored(config.ignored_routes)
        self.tally = Tally()
        self.clock: ClockReading = read_clock()
        spans_most = SPANS_MOST if config.stages is StageStyle.SPANS else 1
        self.sender = Sender(way_out, spans_most, self.tally, config.queue)

    def become(self, config: Config) -> None:
        """Goes by this configuration from now on."""
        self._ignored = Ignored(config.ignored_routes)

    def refresh(self) -> None:
        """Once a second: compares the clocks again, and looks what became of services."""
        self.clock = read_clock()
        self.resources.refresh()

    def meet(self, records: np.ndarray) -> None:
        """Looks at the processes of requests that are to be taken a little later."""
        for whose in dict.fromkeys(_whose(records)):
            self._resource_of(whose)

    def take(self, records: np.ndarray) -> None:
        """Takes a batch of records: queues those that are kept, adds up what is yet to be."""
        kept = records["flags"] & np.uint32(RequestFlag.KEPT) != 0
        if self._series is not None:
            left = np.flatnonzero(records["flags"] & np.uint32(RequestFlag.IN_SERIES) == 0)
            kept[left] |= self._series.add(records[left])
        self.tally.sample_out(int((~kept).sum()))
        # Most often they are all that there are, and need not be copied.
        records = records if kept.all() else records[kept]
        ignored = self._ignored.of(records)
        if ignored.any():
            self.tally.ignore(int(ignored.sum()))
            records = records[~ignored]
        self._queue(records)

    def _queue(self, records: np.ndarray) -> None:
        # What will not fit is dropped before any work is done on it.
        records = records[: self.sender.admit(len(records))]
        if not len(records):
            return
        requests = Requests(
            records, contexts_of(records, self._ids), self._resources_of(records), self.clock
        )
        if self._series is not None:
            self._series.exemplify(requests)
        self.sender.put(requests)

    def _resources_of(self, records: np.ndarray) -> np.ndarray:
        """(n,) of Resource. Now, as the processes may be gone when spans are made."""
        whose = _whose(records)
        known = {each: self._resource_of(each) for each in dict.fromkeys(whose)}
        return np.fromiter(map(known.__getitem__, whose), object, len(whose))

    def _resource_of(self, whose: bytes) -> Resource:
        process, pid, port = np.frombuffer(whose, _WHOSE)[0].item()
        return self.resources.of(Process(pid, *process) if pid else NOBODY, port).resource


def _whose(records: np.ndarray) -> list[bytes]:
    """Of each request _WHOSE."""
    whose = np.zeros(len(records), _WHOSE)
    whose["process"], whose["pid"] = records["process"], records["pid"]
    is_client = records["flags"] & np.uint32(RequestFlag.CLIENT) != 0
    whose["port"] = np.where(is_client, 0, records["local_port"])
    return octets_of(whose)

# SPDX-License-Identifier: Apache-2.0
"""The whole way on one page: kernel record -> request -> span -> exporter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan

from otelbpf.agent.config import Config
from otelbpf.export.sender import Sender
from otelbpf.export.ways_out import WayOut
from otelbpf.host.clock import ClockReading, read_clock
from otelbpf.host.resource import Resources
from otelbpf.kernel.records import RequestFlag, Stamp
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.request import Kind, Request, requests_of
from otelbpf.ledger.tally import Tally
from otelbpf.ledger.trace_contexts import contexts_of
from otelbpf.metrics.series import SeriesTable
from otelbpf.policy.routes import Routes
from otelbpf.traces.spans import StageStyle, spans_of

_STAGES_MOST = len(Stamp) - 1


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
        routes: Routes,
        way_out: WayOut[Sequence[ReadableSpan]] | None,
        series: SeriesTable | None = None,
    ) -> None:
        self._config = config
        self._ids = ids
        self.resources = resources
        self._routes = routes
        self._series = series
        self.tally = Tally()
        self.clock: ClockReading = read_clock()
        spans_each = 1 + (_STAGES_MOST if config.stages is StageStyle.SPANS else 0)
        self.sender = Sender(way_out, self._to_spans, spans_each, self.tally, config.queue)

    def refresh(self) -> None:
        """Once a second: compares the clocks again, and looks what became of services."""
        self.clock = read_clock()
        self.resources.refresh()

    def take(self, records: np.ndarray) -> None:
        """Takes a batch of records: queues those that are kept, adds up what is yet to be."""
        kept = records["flags"] & np.uint32(RequestFlag.KEPT) != 0
        if self._series is not None:
            left = np.flatnonzero(records["flags"] & np.uint32(RequestFlag.IN_SERIES) == 0)
            kept[left] |= self._series.add(records[left])
        self.tally.sample_out(int((~kept).sum()))
        self._queue(records[kept])

    def _queue(self, records: np.ndarray) -> None:
        # What will not fit is dropped before the dear work is done on it.
        records = records[: self.sender.admit(len(records))]
        if not len(records):
            return
        contexts = contexts_of(records, self._ids)
        requests = requests_of(
            records, contexts, self._routes, capture_query=self._config.capture_query
        )
        if self._series is not None:
            self._series.exemplify(records, requests, self.clock.offset_ns)
        # Now, as the process may be gone when the spans are made.
        self.sender.put([(request, self._resource_of(request)) for request in requests])

    def _resource_of(self, request: Request) -> Resource:
        port = request.local_port if request.kind is Kind.SERVER else 0
        return self.resources.of(request.process, port).resource

    def _to_spans(self, of: tuple[Request, Resource]) -> list[ReadableSpan]:
        request, resource = of
        return spans_of(request, self.clock, resource, self._config.stages)

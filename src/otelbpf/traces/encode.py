# SPDX-License-Identifier: Apache-2.0
"""requests -> OTLP: what the description says of them, as bytes of an ExportTraceServiceRequest.

A request's own span is a few texts, of which each is encoded once and kept, and a row of bytes that
is filled column by column for all requests at once. The spans of one stage are a rectangle: copies
of a template, with ids and times filled in. So a span costs a few copies, and no object.

In a resource's spans those of a stage stand together, before the requests' own: OTLP promises no
order.

Source:
    opentelemetry-proto's trace.proto.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind

from otelbpf.kernel.rows import octets_of
from otelbpf.ledger.batch import STAGE_NAMES, Batch, Requests, batches_of
from otelbpf.traces.description import (
    SCOPE,
    Description,
    Said,
    Section,
    StageStyle,
    columns_of,
)
from otelbpf.traces.wire import (
    attributes,
    before_number,
    block,
    head,
    integer,
    padded_varints,
    text,
    width_of,
)

# Fields of Span, of Status, and of the messages around a span.
_NAME, _KIND, _ATTRIBUTES, _LINKS, _STATUS = 5, 6, 9, 13, 15
_CODE, _ERROR = 3, 2
_RESOURCE_SPANS, _SCOPE_SPANS, _SPANS = 1, 2, 2
_RESOURCE, _SCOPE, _SCHEMA_URL = 1, 1, 3
_KINDS = {SpanKind.INTERNAL: 1, SpanKind.SERVER: 2, SpanKind.CLIENT: 3}
# Tags, and lengths where these are always the same.
_TRACE_ID, _SPAN_ID, _PARENT_SPAN_ID = b"\x0a\x10", b"\x12\x08", b"\x22\x08"
_START, _END, _FLAGS, _LINK_FLAGS = b"\x39", b"\x41", b"\x85\x01", b"\x35"
_HAS_IS_REMOTE, _IS_REMOTE = 0x100, 0x200
_TEXTS_KEPT, _RESOURCES_KEPT = 4_096, 4_096
_UNSET, _FAILED = block(_STATUS, b""), block(_STATUS, integer(_CODE, _ERROR))

# What can be joined.
_Octets = bytes | np.ndarray


def _put(rows: np.ndarray, at: int, dtype: np.dtype | str, column: np.ndarray) -> None:
    """Writes a column's values into rows of bytes, all at the same place.

    Args:
        rows: (n, bytes) uint8.
        column: (n,).
    """
    np.ndarray(len(rows), dtype, rows, at, rows.strides[:1])[:] = column


def _joined(columns: Sequence[np.ndarray]) -> list[bytes]:
    """The bytes of columns of n values, one after the other, for each row."""
    widths = [column.dtype.itemsize for column in columns]
    octets = np.empty((len(columns[0]), sum(widths)), np.uint8)
    at = 0
    for column, width in zip(columns, widths, strict=True):
        _put(octets, at, column.dtype, column)
        at += width
    return octets_of(octets)


class _Rows:
    """n rows of bytes, made of cells of which not all need be in each row."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._template = bytearray()
        self._columns: list[tuple[int, str, np.ndarray]] = []
        self._holes: list[tuple[int, int, np.ndarray]] = []

    def cell(
        self, before: bytes, dtype: str, *columns: np.ndarray, where: np.ndarray | None = None
    ) -> None:
        """Adds `before` and then numbers of each row's own.

        Args:
            dtype: how they are written.
            columns: (n,) each.
            where: (n,) bool: which rows have it; None: all.
        """
        begin = len(self._template)
        self._template += before
        for column in columns:
            self._columns.append((len(self._template), dtype, column))
            self._template += bytes(np.dtype(dtype).itemsize)
        if where is not None and not where.all():
            self._holes.append((begin, len(self._template), where))

    def octets(self) -> list[bytes]:
        """Each row's."""
        width = len(self._template)
        octets = np.empty((self._count, width), np.uint8)
        octets[:] = np.frombuffer(self._template, np.uint8)
        for at, dtype, column in self._columns:
            _put(octets, at, dtype, column)
        if not self._holes:
            return octets_of(octets)
        kept = np.ones((self._count, width), bool)
        lengths = np.full(self._count, width)
        for begin, end, where in self._holes:
            kept[:, begin:end] = where[:, np.newaxis]
            lengths -= np.where(where, 0, end - begin)
        ends = np.cumsum(lengths).tolist()
        joined = octets[kept].tobytes()
        return [joined[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


class _Texts:
    """What a section says, encoded: once for each of the values of its columns."""

    def __init__(self, section: Section) -> None:
        self._section = section
        self._columns = columns_of(section)
        # By the bytes of all of its columns.
        self._known: dict[bytes, bytes] = {}

    def of(self, batch: Batch) -> list[bytes]:
        """For each request."""
        columns = [batch.column(name) for name in self._columns]
        keys = _joined(columns)
        found = list(map(self._known.get, keys))
        if None not in found:
            return found  # type: ignore[return-value]  # as was just asked
        if len(self._known) > _TEXTS_KEPT:
            self._known.clear()
            found = [None] * len(keys)
        new = {
            key: row
            for row, (key, octets) in enumerate(zip(keys, found, strict=True))
            if octets is None
        }
        rows = list(new.values())
        values = zip(*(column[rows].tolist() for column in columns), strict=True)
        for key, each in zip(new, values, strict=True):
            self._known[key] = _encoded(self._section(*each))
        return [self._known[key] for key in keys]


def _encoded(said: Said) -> bytes:
    """A part of Span."""
    parts = [attributes(_ATTRIBUTES, said.attributes)]
    if said.name is not None:
        parts.append(text(_NAME, said.name))
    if said.kind is not None:
        parts.append(integer(_KIND, _KINDS[said.kind]))
    if said.failed is not None:
        parts.append(_FAILED if said.failed else _UNSET)
    return b"".join(parts)


# What of a stage's span is its own, each number after its tag.
_OWN_OF_STAGE = (
    (_TRACE_ID, ">u8"),
    (b"", ">u8"),
    (_SPAN_ID, ">u8"),
    (_PARENT_SPAN_ID, ">u8"),
    (_START, "<u8"),
    (_END, "<u8"),
)


@functools.cache
def _stage_template(number: int) -> tuple[np.ndarray, tuple[tuple[int, str], ...]]:
    """A span of this stage with its tag and length, and where its own numbers are to be."""
    own = b"".join(tag + bytes(np.dtype(dtype).itemsize) for tag, dtype in _OWN_OF_STAGE)
    span = block(
        _SPANS,
        text(_NAME, STAGE_NAMES[number])
        + integer(_KIND, _KINDS[SpanKind.INTERNAL])
        + _UNSET
        + _FLAGS
        + _HAS_IS_REMOTE.to_bytes(4, "little")
        + own,
    )
    places, at = [], len(span) - len(own)
    for tag, dtype in _OWN_OF_STAGE:
        places.append((at + len(tag), dtype))
        at += len(tag) + np.dtype(dtype).itemsize
    return np.frombuffer(span, np.uint8), tuple(places)


@dataclass
class _Pieces:
    """Of one resource's spans, and how long they are together."""

    octets: list[_Octets] = field(default_factory=list)
    size: int = 0


class Encoder:
    """Makes OTLP of requests, each time one ExportTraceServiceRequest."""

    def __init__(self, description: Description) -> None:
        self._description = description
        self._learn_sections()
        # By its id; it is held, so that no other one has that.
        self._resources: dict[int, tuple[Resource, bytes]] = {}
        self._scope = block(_SCOPE, text(1, SCOPE.name) + text(2, SCOPE.version or ""))

    def _learn_sections(self) -> None:
        self._sections = self._description.sections
        self._texts = {
            kind: tuple(map(_Texts, sections)) for kind, sections in self._sections.items()
        }

    def encode(self, requests: Requests) -> bytes:
        """The spans of requests."""
        if self._sections is not self._description.sections:
            # What is known of texts was said by other rules.
            self._learn_sections()
        by_resource: dict[int, tuple[Resource, _Pieces]] = {}
        for batch in batches_of(requests):
            self._add(batch, by_resource)
        message: list[_Octets] = []
        for resource, pieces in by_resource.values():
            own = self._resource(resource)
            scope_spans = head(_SCOPE_SPANS, len(self._scope) + pieces.size) + self._scope
            schema = text(_SCHEMA_URL, resource.schema_url) if resource.schema_url else b""
            size = len(own) + len(scope_spans) + pieces.size + len(schema)
            message += (head(_RESOURCE_SPANS, size), own, scope_spans, *pieces.octets, schema)
        return b"".join(message)  # type: ignore[arg-type]  # arrays are buffers, too

    def _resource(self, resource: Resource) -> bytes:
        known = self._resources.get(id(resource))
        if known is None:
            if len(self._resources) >= _RESOURCES_KEPT:
                self._resources.clear()
            own = block(_RESOURCE, attributes(1, resource.attributes))  # type: ignore[arg-type]
            known = self._resources[id(resource)] = resource, own
        return known[1]

    def _add(self, batch: Batch, by_resource: dict[int, tuple[Resource, _Pieces]]) -> None:
        """Adds a batch's spans to those of their resources."""
        runs = batch.runs()
        parts = [
            by_resource.setdefault(id(resource), (resource, _Pieces()))[1]
            for resource, _, _ in runs
        ]
        ends = [end for _, _, end in runs]
        if self._description.stages is StageStyle.SPANS:
            for row, octets in self._stages(batch):
                cuts = np.searchsorted(row, ends).tolist()
                for pieces, first, last in zip(parts, [0, *cuts[:-1]], cuts, strict=True):
                    if last > first:
                        pieces.octets.append(octets[first:last])
                        pieces.size += octets[first:last].size
        own = self._own_spans(batch)
        for pieces, (_, begin, end) in zip(parts, runs, strict=True):
            of_run = own[2 * begin : 2 * end]
            pieces.octets += of_run
            pieces.size += sum(map(len, of_run))

    def _stages(self, batch: Batch) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For each stage that there is the requests that have it, and (m, bytes) their spans."""
        stages, contexts = batch.stages, batch.contexts
        row = stages.row
        own = (
            contexts.trace_id_high[row],
            contexts.trace_id_low[row],
            batch.stage_span_ids(),
            contexts.span_id[row],
            batch.unix_ns(stages.start_ktime_ns),
            batch.unix_ns(stages.end_ktime_ns),
        )
        for number, run in stages.runs:
            template, places = _stage_template(number)
            octets = np.empty((run.stop - run.start, len(template)), np.uint8)
            octets[:] = template
            for (at, dtype), column in zip(places, own, strict=True):
                _put(octets, at, dtype, column[run])
            yield row[run], octets

    def _own_spans(self, batch: Batch) -> list[bytes]:
        """The requests' own spans, each in two pieces: what goes before it, and the span."""
        columns = [texts.of(batch) for texts in self._texts[batch.kind]]
        columns.append(self._rows(batch))
        spans = list(map(b"".join, zip(*columns, strict=True)))
        heads = map(head, itertools.repeat(_SPANS), map(len, spans))
        return list(itertools.chain.from_iterable(zip(heads, spans, strict=True)))

    def _rows(self, batch: Batch) -> list[bytes]:
        """What is each request's own in its span."""
        contexts = batch.contexts
        rows = _Rows(len(batch))
        rows.cell(_TRACE_ID, ">u8", contexts.trace_id_high, contexts.trace_id_low)
        rows.cell(_SPAN_ID, ">u8", contexts.span_id)
        has_parent = contexts.parent_span_id != 0
        if has_parent.any():
            rows.cell(_PARENT_SPAN_ID, ">u8", contexts.parent_span_id, where=has_parent)
        rows.cell(_START, "<u8", batch.unix_ns(batch.start_ktime_ns))
        rows.cell(_END, "<u8", batch.unix_ns(batch.end_ktime_ns))
        remote = np.where(has_parent & ~contexts.caused, _IS_REMOTE, 0)
        rows.cell(_FLAGS, "<u4", _HAS_IS_REMOTE | remote)
        self._add_link(batch, rows)
        self._add_numbers(batch, rows)
        return rows.octets()

    @staticmethod
    def _add_link(batch: Batch, rows: _Rows) -> None:
        contexts = batch.contexts
        linked = contexts.linked_span_id != 0
        if linked.any():
            flags = _LINK_FLAGS + (_HAS_IS_REMOTE | _IS_REMOTE).to_bytes(4, "little")
            length = len(flags) + len(_TRACE_ID) + 16 + len(_SPAN_ID) + 8
            before = head(_LINKS, length) + flags + _TRACE_ID
            rows.cell(before, ">u8", contexts.trace_id_high, contexts.trace_id_low, where=linked)
            rows.cell(_SPAN_ID, ">u8", contexts.linked_span_id, where=linked)

    def _add_numbers(self, batch: Batch, rows: _Rows) -> None:
        told, values = [], []
        for number in self._description.numbers_of(batch):
            where = None if number.where is None else number.where(batch)
            if where is None or where.any():
                told.append((number.key, where))
                value = number.of(batch)
                values.append(value if where is None else np.where(where, value, 0))
        table = np.array(values, np.uint64)
        widths = [width_of(largest) for largest in table.max(axis=1).tolist()]
        octets = iter(padded_varints(table, widths))
        for (key, where), width in zip(told, widths, strict=True):
            before = before_number(_ATTRIBUTES, key, width)
            rows.cell(before, "u1", *itertools.islice(octets, width), where=where)

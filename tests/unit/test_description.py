# SPDX-License-Identifier: Apache-2.0
"""How an attribute is added: a section or a number of a description, and both forms say it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from samples import WHOLE, requests

from otelbpf.kernel.records import RequestFlag
from otelbpf.ledger.batch import Batch, Requests
from otelbpf.ledger.request import Kind
from otelbpf.policy.capture import Capture
from otelbpf.policy.routes import Routes
from otelbpf.traces.description import Description, Number, Said, Section, StageStyle, columns_of
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans


class Asked:
    """A section that notes what it was asked for."""

    def __init__(self) -> None:
        self.for_: list[tuple[int, int]] = []

    def section(self, local_port: int, status: int) -> Said:
        """Of servers: which of our ports have trouble, by two columns of the record."""
        self.for_.append((local_port, status))
        return Said({"shop.trouble": True} if status >= 500 else {})


class ShopDescription(Description):
    """One that says more: a section of its own for servers, and two numbers for all."""

    def __init__(self, section: Section) -> None:
        super().__init__(Routes(), Capture(), StageStyle.ATTRIBUTES)
        mine: Mapping[Kind, tuple[Section, ...]] = {
            **self.sections,
            Kind.SERVER: (*self.sections[Kind.SERVER], section),
        }
        self.sections = mine

    def numbers_of(self, batch: Batch) -> Iterator[Number]:
        yield from super().numbers_of(batch)
        yield Number("shop.bytes", lambda batch: batch.column("request_bytes"))
        yield Number(
            "shop.large",
            lambda batch: batch.column("response_bytes"),
            lambda batch: batch.column("response_bytes") > 1_000,
        )


def told(made: Requests, description: Description) -> list[dict[str, object]]:
    """The shop's attributes of each request, which both forms must agree on."""
    forms = []
    ours = ExportTraceServiceRequest.FromString(Encoder(description).encode(made))
    for export in (ours, encode_spans(readable_spans(description, made))):
        spans = [
            span
            for of_resource in export.resource_spans
            for of_scope in of_resource.scope_spans
            for span in of_scope.spans
        ]
        forms.append([
            {each.key: value_of(each.value) for each in span.attributes if each.key[:4] == "shop"}
            for span in sorted(spans, key=lambda span: span.span_id)
        ])  # fmt: skip
    assert forms[0] == forms[1]
    return forms[0]


def value_of(value: AnyValue) -> object:
    name = value.WhichOneof("value")
    assert name is not None
    return getattr(value, name)


def made() -> Requests:
    """Three servers' requests and a client's."""
    all_ = Requests.joined(
        [
            requests(status=200, request_bytes=0),
            requests(status=503, response_bytes=1 << 40),
            requests(status=503, request_bytes=1 << 62),
            requests(status=503, flags=WHOLE | RequestFlag.CLIENT, response_bytes=1_001),
        ]
    )
    all_.contexts.span_id[:] = [1, 2, 3, 4]
    return all_


def test_a_section_and_numbers_of_ones_own_are_said_in_both_forms() -> None:
    assert told(made(), ShopDescription(Asked().section)) == [
        {"shop.bytes": 0},
        {"shop.trouble": True, "shop.bytes": 90, "shop.large": 1 << 40},
        {"shop.trouble": True, "shop.bytes": 1 << 62},
        {"shop.bytes": 90, "shop.large": 1_001},
    ]


def test_nothing_else_changes() -> None:
    plain = Description(Routes(), Capture(), StageStyle.ATTRIBUTES)
    more, less = (
        readable_spans(description, made())
        for description in (ShopDescription(Asked().section), plain)
    )
    for one, other in zip(more, less, strict=True):
        attributes = dict(one.attributes or {})
        kept = {key: value for key, value in attributes.items() if not key.startswith("shop.")}
        assert kept == dict(other.attributes or {})
        assert one.name == "GET /items/{id}"
        assert (one.name, one.kind, one.status.status_code) == (
            other.name, other.kind, other.status.status_code
        )  # fmt: skip


def test_a_section_is_asked_once_for_each_of_its_values() -> None:
    """Whatever else differs between requests."""
    asked = Asked()
    encoder = Encoder(ShopDescription(asked.section))
    for _ in range(2):
        encoder.encode(made())
    assert asked.for_ == [(8080, 200), (8080, 503)]


def test_a_section_may_name_the_span() -> None:
    """What it says goes before what is said before it; what it does not say stays."""

    def renamed(ordinal: int) -> Said:
        return Said({"shop.ordinal": ordinal}, name=f"request {ordinal}")

    made = requests(ordinal=7)
    description = ShopDescription(renamed)
    (span,) = readable_spans(description, made)
    assert (span.name, span.kind.name) == ("request 7", "SERVER")
    export = ExportTraceServiceRequest.FromString(Encoder(description).encode(made))
    assert export.resource_spans[0].scope_spans[0].spans[0].name == "request 7"


def test_the_columns_of_a_section_are_its_parameters() -> None:
    assert columns_of(Asked().section) == ("local_port", "status")


@pytest.mark.parametrize("kind", Kind)
def test_every_column_that_a_section_asks_for_is_one(kind: Kind) -> None:
    description = Description(Routes(), Capture(query=True), StageStyle.SPANS)
    flags = WHOLE | (RequestFlag.CLIENT if kind is Kind.CLIENT else RequestFlag(0))
    batch = Batch(requests(flags=flags))
    for section in description.sections[kind]:
        for name in columns_of(section):
            assert len(batch.values(name)) == 1
    for number in description.numbers_of(batch):
        assert np.issubdtype(number.of(batch).dtype, np.unsignedinteger)


def test_no_attribute_is_said_twice() -> None:
    """A collector would keep either."""
    description = Description(Routes(), Capture(query=True), StageStyle.ATTRIBUTES)
    for flags in (WHOLE, WHOLE | RequestFlag.CLIENT):
        octets = Encoder(description).encode(requests(flags=flags))
        export = ExportTraceServiceRequest.FromString(octets)
        keys = [each.key for each in export.resource_spans[0].scope_spans[0].spans[0].attributes]
        assert len(keys) == len(set(keys)) > 20

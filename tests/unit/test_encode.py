# SPDX-License-Identifier: Apache-2.0
"""What a request says is the same in both forms: our bytes, and the SDK's spans, encoded by it."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from drawn_records import RECORDS
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from replay import CLOCK, RING
from varied_records import varied

from otelbpf.agent.config import Config
from otelbpf.agent.pipeline import Pipeline
from otelbpf.host.resource import Resources
from otelbpf.ledger.batch import Requests
from otelbpf.ledger.ids import Ids
from otelbpf.ledger.reader import decode
from otelbpf.ledger.trace_contexts import contexts_of
from otelbpf.policy.capture import Capture, Clients
from otelbpf.policy.routes import Routes
from otelbpf.traces.description import Description, StageStyle
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans

CONFIG = Config(interfaces=("lo",), ports=(8080,))
CAPTURES = (
    Capture(),
    Capture(query=True),
    Capture(path=False, user_agent=False, clients=Clients.NONE),
    Capture(clients=Clients.PREFIX),
)


@functools.cache
def pipeline() -> Pipeline:
    return Pipeline(CONFIG, Ids(bytes(16)), Resources(None), None)


def requests_of(records: np.ndarray) -> Requests:
    return Requests(
        records, contexts_of(records, Ids(bytes(16))), pipeline()._resources_of(records), CLOCK
    )


def by_id(export: ExportTraceServiceRequest) -> dict[bytes, tuple[bytes, ...]]:
    """All that is said of each span, its attributes in the order of their keys."""
    said = {}
    for of_resource in export.resource_spans:
        of_resource.resource.attributes.sort(key=lambda each: each.key)
        for of_scope in of_resource.scope_spans:
            for span in of_scope.spans:
                span.attributes.sort(key=lambda each: each.key)
                assert span.span_id not in said
                said[span.span_id] = tuple(
                    each.SerializeToString(deterministic=True)
                    for each in (of_resource.resource, of_scope.scope, span)
                )
    return said


def assert_same(requests: Requests, description: Description) -> None:
    encoder = Encoder(description)
    octets = encoder.encode(requests)
    # By now it knows all of the texts.
    assert encoder.encode(requests) == octets
    ours = by_id(ExportTraceServiceRequest.FromString(octets))
    sdks = by_id(encode_spans(readable_spans(description, requests)))
    assert ours == sdks
    assert len(ours) >= len(requests)


@pytest.mark.parametrize("stages", StageStyle)
@pytest.mark.parametrize("capture", CAPTURES)
def test_recorded_requests_say_the_same(stages: StageStyle, capture: Capture) -> None:
    description = Description(Routes(), capture, stages)
    assert_same(requests_of(decode(RING.read_bytes())), description)


@pytest.mark.parametrize("stages", StageStyle)
@pytest.mark.parametrize("seed", range(8))
def test_requests_of_every_shape_say_the_same(stages: StageStyle, seed: int) -> None:
    routes = Routes(("/items/{id}", "/users/{id}/files"))
    description = Description(routes, CAPTURES[seed % len(CAPTURES)], stages)
    assert_same(requests_of(varied(1_000, seed)), description)


# The same examples each time: what fails here fails everywhere.
@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(RECORDS, st.sampled_from(StageStyle), st.sampled_from(CAPTURES))
def test_requests_that_nobody_thought_of_say_the_same(
    records: np.ndarray, stages: StageStyle, capture: Capture
) -> None:
    routes = Routes(("/items/{id}",))
    assert_same(requests_of(records), Description(routes, capture, stages))


@pytest.mark.parametrize("stages", StageStyle)
def test_what_is_said_from_now_on_is_said_by_the_new_rules_alone(stages: StageStyle) -> None:
    """Though texts of the same requests are known by others."""
    requests = requests_of(varied(300, 1))
    description = Description(Routes(), CAPTURES[0], stages)
    encoder = Encoder(description)
    for capture in (*CAPTURES, CAPTURES[0]):
        routes = Routes(("/items/{name}",))
        description.become(routes, capture)
        fresh = Description(routes, capture, stages)
        assert encoder.encode(requests) == Encoder(fresh).encode(requests)
        assert by_id(encode_spans(readable_spans(description, requests))) == by_id(
            encode_spans(readable_spans(fresh, requests))
        )

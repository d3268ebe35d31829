# SPDX-License-Identifier: Apache-2.0
"""How the ways out are made: which exporter, which form, and which door."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (
    OTLPSpanExporter as GrpcSpanExporter,
)
from opentelemetry.exporter.otlp.proto.http.trace_exporter import (
    OTLPSpanExporter as HttpSpanExporter,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from samples import description, requests

from otelbpf.errors import UsageError
from otelbpf.export import doors, ways_out
from otelbpf.export.answers import Answer, Verdict
from otelbpf.export.doors import GrpcDoor, HttpDoor
from otelbpf.export.ways_out import ExportDoor, by_export, metrics_way_out, spans_way_out
from otelbpf.kernel.records import Stamp
from otelbpf.ledger.batch import Requests
from otelbpf.traces.encode import Encoder
from otelbpf.traces.spans import readable_spans

SAID = description()


@pytest.fixture
def spans() -> list[ReadableSpan]:
    """What requests() become as the SDK's spans."""
    return readable_spans(SAID, requests())


def told(spans: Sequence[ReadableSpan]) -> list[str]:
    """All that they say: two of these objects are never the same."""
    return [span.to_json() for span in spans]


@pytest.mark.parametrize(
    ("name", "kind", "door"),
    [
        ("otlp_proto_grpc", GrpcSpanExporter, GrpcDoor),
        ("otlp_proto_http", HttpSpanExporter, HttpDoor),
    ],
)
def test_exporters_are_the_official_ones(
    name: str, kind: type, door: type, spans: list[ReadableSpan]
) -> None:
    """Their doors are given bytes of our own (test_encode.py: as the official encoder's)."""
    made = spans_way_out(name, SAID)
    assert made is not None
    assert isinstance(made.door, door)
    assert type(made.door._exporter) is kind  # type: ignore[attr-defined]
    octets = made.form(requests())
    assert octets == Encoder(SAID).encode(requests())
    (of_resource,) = ExportTraceServiceRequest.FromString(octets).resource_spans
    (of_scope,) = of_resource.scope_spans
    assert {span.span_id: span.name for span in of_scope.spans} == {
        span.context.span_id.to_bytes(8, "big"): span.name for span in spans
    }
    made.door.close()


@pytest.mark.parametrize("name", ["otlp_proto_grpc", "otlp_proto_http"])
def test_one_without_a_known_door_is_asked_by_its_export(
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    spans: list[ReadableSpan],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(doors, "door_of", lambda exporter, signal: None)
    made = spans_way_out(name, SAID)
    assert made is not None
    assert isinstance(made.door, ExportDoor)
    assert told(made.form(requests())) == told(spans)
    (message,) = caplog.messages
    assert message.startswith("the exporter of traces is of a version that otelbpf does not know: ")
    made.door.close()


def test_by_export(spans: list[ReadableSpan]) -> None:
    made = by_export(exporter := InMemorySpanExporter(), SAID, "there")
    assert made.door.send(made.form(requests()), 1.0) == Answer(Verdict.TAKEN)
    assert told(exporter.get_finished_spans()) == told(spans)
    made.door.close()
    assert made.door.send(made.form(requests()), 1.0) == Answer(
        Verdict.LATER, "InMemorySpanExporter does not say why"
    )


def test_whom_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what speaks OTLP is called a collector."""
    monkeypatch.setattr(doors, "door_of", lambda exporter, signal: None)
    monkeypatch.setattr(ways_out, "load_exporter", lambda *_: InMemorySpanExporter())
    file = str(tmp_path / "spans.jsonl")
    for name, output, whose in (
        ("otlp_proto_grpc", None, "the collector"),
        ("otlp_json_file", file, file),
        ("otlp_json_file", None, "standard output"),
        ("zipkin", None, "exporter zipkin"),
    ):
        made = spans_way_out(name, SAID, output)
        assert made is not None
        assert made.whose == whose
        made.door.close()
    assert metrics_way_out("otlp_json_file", "there", 1.0, {}).whose == "standard output"


def test_how_many_requests_go_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Whole batches over OTLP; where each span is an object, as many as exporters are used to."""
    whole = spans_way_out("otlp_proto_http", SAID)
    assert whole is not None
    assert whole.most is None
    whole.door.close()
    monkeypatch.setattr(ways_out, "load_exporter", lambda *_: InMemorySpanExporter())
    for name, output in (("zipkin", None), ("otlp_json_file", str(tmp_path / "spans.jsonl"))):
        made = spans_way_out(name, SAID, output)
        assert made is not None
        assert made.most == 64
        made.door.close()
    monkeypatch.undo()
    console = spans_way_out("console", SAID)
    assert console is not None
    assert console.most == 64


def test_a_line_of_a_file_is_less_than_collectors_read_of_one(tmp_path: Path) -> None:
    """A MiB: with all stages that there are, and long texts."""
    longest = requests(
        {stamp: 100 * stamp for stamp in Stamp},
        request_line=b"GET /" + b"x" * 240 + b" HTTP/1.1",
        user_agent=b"x" * 120,
    )
    made = spans_way_out("otlp_json_file", SAID, str(tmp_path / "spans.jsonl"))
    assert made is not None
    assert made.most is not None
    assert len(made.form(Requests.joined([longest] * made.most))) < 1 << 20
    made.door.close()


def test_none() -> None:
    assert spans_way_out("none", SAID) is None


def test_unknown_exporters_are_refused() -> None:
    with pytest.raises(UsageError) as refusal:
        spans_way_out("jaeger", SAID)
    text = str(refusal.value)
    assert text.startswith("OTEL_TRACES_EXPORTER=jaeger is not installed: there are otlp, none, ")
    for name in ("console", "otlp_json_file", "otlp_proto_grpc", "otlp_proto_http"):
        assert f", {name}" in text
    assert "\n" not in text


def test_the_json_file(tmp_path: Path, spans: list[ReadableSpan]) -> None:
    """Each batch is a line of OTLP JSON."""
    two = Requests.joined([requests(), requests(request_line=b"GET / HTTP/1.1")])
    made = spans_way_out("otlp_json_file", SAID, str(path := tmp_path / "spans.jsonl"))
    assert made is not None
    assert made.whose == str(path)
    for some in (requests(), two):
        assert made.door.send(made.form(some), 1.0) == Answer(Verdict.TAKEN)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    names = [
        [
            span["name"]
            for one in line["resourceSpans"]
            for scope in one["scopeSpans"]
            for span in scope["spans"]
        ]
        for line in lines
    ]
    one, *stages = [span.name for span in spans]
    assert one == "GET /items/{id}"
    assert names == [[one, *stages], [one, "GET /", *stages, *stages]]


@pytest.mark.parametrize("name", ["console", "otlp_json_file"])
def test_standard_output(
    name: str, capfd: pytest.CaptureFixture[str], spans: list[ReadableSpan]
) -> None:
    made = spans_way_out(name, SAID)
    assert made is not None
    assert made.whose == "standard output"
    assert made.door.send(made.form(requests()), 1.0) == Answer(Verdict.TAKEN)
    out, err = capfd.readouterr()
    assert err == ""
    if name == "console":
        assert out == "".join(span.to_json() + "\n" for span in spans)
    else:
        assert json.loads(out)["resourceSpans"]


@pytest.mark.parametrize("name", ["console", "otlp_proto_grpc", "none"])
def test_output_goes_with_the_json_file_only(name: str) -> None:
    with pytest.raises(UsageError, match=r"^--output goes with .*=otlp_json_file"):
        spans_way_out(name, SAID, "spans.jsonl")


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    path = tmp_path / "missing/spans.jsonl"
    with pytest.raises(UsageError) as refusal:
        spans_way_out("otlp_json_file", SAID, str(path))
    assert str(refusal.value) == (
        f"cannot write {path} (No such file or directory): let --output name a file in a directory "
        "that is there"
    )
    assert refusal.value.__cause__ is not None

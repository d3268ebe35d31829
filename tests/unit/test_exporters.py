# SPDX-License-Identifier: Apache-2.0
"""Which exporter is meant, and what is refused before it is made."""

from __future__ import annotations

import itertools

import pytest

from otelbpf.errors import UsageError
from otelbpf.export.exporters import destination, exporter_name
from otelbpf.export.sender import QueueLimits

PROTOCOLS = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("", "_TRACES"):
        for what in ("PROTOCOL", "ENDPOINT", "HEADERS", "COMPRESSION", "CERTIFICATE"):
            monkeypatch.delenv(f"OTEL_EXPORTER_OTLP{name}_{what}", raising=False)


@pytest.mark.parametrize(
    ("exporter", "traces", "general"),
    list(
        itertools.product(
            (None, "", "otlp", " otlp "), (None, "", *PROTOCOLS), (None, " ", *PROTOCOLS)
        )
    ),
)
def test_protocols(exporter: str | None, traces: str | None, general: str | None) -> None:
    """The variable for traces goes before the one for all; gRPC is the default."""
    variables = {
        "OTEL_TRACES_EXPORTER": exporter,
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": traces,
        "OTEL_EXPORTER_OTLP_PROTOCOL": general,
    }
    environment = {name: value for name, value in variables.items() if value is not None}
    expected = PROTOCOLS[traces or (general or "").strip() or "grpc"]
    assert exporter_name(environment) == expected


@pytest.mark.parametrize("name", ["console", "none", "otlp_json_file", "otlp_proto_http", "x"])
def test_other_exporters_by_their_names(name: str) -> None:
    environment = {"OTEL_TRACES_EXPORTER": name, "OTEL_EXPORTER_OTLP_PROTOCOL": "nonsense"}
    assert exporter_name(environment) == name


@pytest.mark.parametrize(
    "variable", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"]
)
@pytest.mark.parametrize("protocol", ["http/json", "http", "GRPC ", "thrift"])
def test_unknown_protocols_are_refused(variable: str, protocol: str) -> None:
    with pytest.raises(UsageError) as refusal:
        exporter_name({variable: protocol})
    assert str(refusal.value) == (
        f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol.strip()} is not supported: "
        "it is one of grpc, http/protobuf"
    )


def test_several_exporters_are_refused() -> None:
    with pytest.raises(UsageError, match=r"^OTEL_TRACES_EXPORTER=otlp,console names several"):
        exporter_name({"OTEL_TRACES_EXPORTER": "otlp,console"})


@pytest.mark.parametrize(
    ("environment", "name", "text"),
    [
        ({}, "otlp_proto_grpc", "http://localhost:4317 (grpc)"),
        ({}, "otlp_proto_http", "http://localhost:4318 (http/protobuf)"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}, "otlp_proto_grpc", "http://a:1 (grpc)"),
        (
            {
                "OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1",
                "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://b:2/v1",
            },
            "otlp_proto_http",
            "http://b:2/v1 (http/protobuf)",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a:1"}, "console", "console"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://me:secret@a:1/x"},
            "otlp_proto_http",
            "https://me:…@a:1/x (http/protobuf)",
        ),
    ],
)
def test_destination(environment: dict[str, str], name: str, text: str) -> None:
    assert destination(environment, name) == text


def test_queue_limits_from_the_variables() -> None:
    assert QueueLimits.from_environment({}) == QueueLimits()
    assert QueueLimits.from_environment(
        {
            "OTEL_BSP_MAX_QUEUE_SIZE": "7",
            "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": " 8 ",
            "OTEL_BSP_SCHEDULE_DELAY": "250",
            "OTEL_BSP_EXPORT_TIMEOUT": "1500",
        }
    ) == QueueLimits(requests=7, batch_spans=8, delay_s=0.25, flush_s=1.5)
    assert QueueLimits.from_environment({"OTEL_BSP_MAX_QUEUE_SIZE": "  "}) == QueueLimits()


@pytest.mark.parametrize(
    "text", ["0", "-1", "1.5", "many", "1e3", "\xb2", "\u0663", "0x10", "1" + "0" * 9, "9" * 5000]
)
@pytest.mark.parametrize(
    "name",
    [
        "OTEL_BSP_MAX_QUEUE_SIZE",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
        "OTEL_BSP_SCHEDULE_DELAY",
        "OTEL_BSP_EXPORT_TIMEOUT",
    ],
)
def test_bad_queue_limits_are_refused(name: str, text: str) -> None:
    with pytest.raises(UsageError) as refusal:
        QueueLimits.from_environment({name: text})
    assert str(refusal.value) == f"{name}={text} is no whole number from 1 to 999999999"

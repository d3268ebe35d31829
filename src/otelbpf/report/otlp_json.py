# SPDX-License-Identifier: Apache-2.0
"""file -> spans: OTLP's JSON, one export a line."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from otelbpf.errors import UsageError

#: No exporter makes lines like that; a file without line ends shall not fill the memory.
LONGEST_LINE = 256 << 20
_OF_OTHER_SIGNALS = frozenset(("resourceMetrics", "resourceLogs", "resourceProfiles"))
_STATUS_ERROR = 2

Value = str | bool | int | float | list["Value"] | dict[str, "Value"] | None


class Span(NamedTuple):
    """One span of a line.

    Attributes:
        trace_id, span_id, parent_span_id: lower-case hex; parent_span_id is empty for the root.
        kind: OTLP's number.
        failed: its status is an error.
        scope: the name of the instrumentation.
    """

    trace_id: str
    span_id: str
    parent_span_id: str
    name: str
    kind: int
    start_unix_ns: int
    end_unix_ns: int
    failed: bool
    attributes: dict[str, Value]
    resource: dict[str, Value]
    scope: str


class Line(NamedTuple):
    """Where a line begins, in bytes, and its spans; None: it is not whole."""

    offset: int
    spans: list[Span] | None


def lines(path: Path) -> Iterator[Line]:
    """Every line of a file; one without spans (metrics and logs, too) is empty.

    A line that is not whole is what a writer has left that was killed, or had no room.

    Raises:
        UsageError: it cannot be read, or has no whole line of OTLP JSON, or whole ones of another.
    Source:
        https://opentelemetry.io/docs/specs/otlp/#json-protobuf-encoding and
        https://opentelemetry.io/docs/specs/otel/protocol/file-exporter/, which the agent's
        otlp_json_file and the collector's fileexporter both write.
    """
    _require_file(path)
    try:
        with path.open("rb") as file:
            offset, number, torn, whole = 0, 0, 0, 0
            while text := file.readline(LONGEST_LINE):
                number += 1
                if text.strip():
                    spans = _spans_of(text, path, number)
                    torn, whole = (torn or number, whole) if spans is None else (torn, whole + 1)
                    yield Line(offset, spans)
                offset += len(text)
        if torn and not whole:
            raise UsageError(
                f"line {torn} of {path} is no JSON, and no other is: --spans takes what "
                "OTEL_TRACES_EXPORTER=otlp_json_file or the collector's file exporter wrote"
            )
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def lines_at(path: Path, offsets: list[int]) -> Iterator[Line]:
    """The lines that begin at these offsets, which lines() told.

    Raises:
        UsageError: the file is another one by now.
    """
    try:
        with path.open("rb") as file:
            for offset in offsets:
                file.seek(offset)
                spans = _spans_of(file.readline(LONGEST_LINE), path, None)
                if spans is None:
                    raise UsageError(f"{path} was changed while it was read: try again")
                yield Line(offset, spans)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise UsageError(f"cannot read {path}: {why}") from error
    if not stat.S_ISREG(mode):
        raise UsageError(
            f"cannot read {path}: it is no ordinary file, and is read twice; write what comes "
            "from there to a file first"
        )


def _spans_of(text: bytes, path: Path, number: int | None) -> list[Span] | None:
    where = f"line {number} of {path}" if number else f"a line of {path}"
    if not text.endswith(b"\n") and len(text) == LONGEST_LINE:
        raise UsageError(f"{where} is longer than {LONGEST_LINE >> 20} MiB: it is no OTLP JSON")
    try:
        export = json.loads(text)
    except (ValueError, RecursionError):
        return None
    try:
        if not isinstance(export, dict):
            raise ValueError("it is no object")
        if export and "resourceSpans" not in export and not _OF_OTHER_SIGNALS & export.keys():
            raise ValueError("it has no resourceSpans")
        return list(_spans(export))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        why = f"{error} is missing" if isinstance(error, KeyError) else error
        raise UsageError(f"{where} is JSON, but not OTLP's: {why}") from error


def _spans(export: dict[str, Any]) -> Iterator[Span]:
    for of_resource in export.get("resourceSpans") or ():
        resource = _attributes(of_resource.get("resource") or {})
        for of_scope in of_resource.get("scopeSpans") or ():
            scope = (of_scope.get("scope") or {}).get("name", "")
            for span in of_scope.get("spans") or ():
                yield Span(
                    _hex_id(span["traceId"], 32),
                    _hex_id(span["spanId"], 16),
                    _hex_id(parent, 16) if (parent := span.get("parentSpanId")) else "",
                    str(span.get("name", "")),
                    int(span.get("kind", 0)),
                    _unix_ns(span["startTimeUnixNano"]),
                    _unix_ns(span["endTimeUnixNano"]),
                    (span.get("status") or {}).get("code") == _STATUS_ERROR,
                    _attributes(span),
                    resource,
                    scope,
                )


def _hex_id(text: str, digits: int) -> str:
    if len(text) != digits or int(text, 16) == 0:
        raise ValueError(f"{text!r} is no id of {digits} hex digits")
    return text.lower()


def _unix_ns(text: str | int) -> int:
    ns = int(text)
    if not 0 <= ns < 1 << 63:
        raise ValueError(f"{text!r} is no time in nanoseconds since 1970")
    return ns


def _attributes(holder: dict[str, Any]) -> dict[str, Value]:
    return _values(holder.get("attributes") or [])


def _values(pairs: list[dict[str, Any]]) -> dict[str, Value]:
    return {str(pair["key"]): _value(pair.get("value") or {}) for pair in pairs}


def _value(held: dict[str, Any]) -> Value:
    if not held:
        return None
    ((kind, value),) = held.items()
    match kind:
        case "stringValue" | "bytesValue":
            return str(value)
        case "intValue":
            return int(value)
        case "doubleValue":
            return float(value)
        case "boolValue":
            return bool(value)
        case "arrayValue":
            return [_value(each) for each in value.get("values") or []]
        case "kvlistValue":
            return _values(value.get("values") or [])
    raise ValueError(f"no kind of value is called {kind!r}")

# SPDX-License-Identifier: Apache-2.0
"""What a receiver of OTLP answered, read from gRPC's and HTTP's words.

Source:
    https://opentelemetry.io/docs/specs/otlp/, sections OTLP/gRPC Response, OTLP/HTTP Response and
    their Throttling.
"""

from __future__ import annotations

import re
import time
from email.utils import parsedate_to_datetime

from google.protobuf.json_format import Parse, ParseError
from google.protobuf.message import DecodeError
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceResponse

from otelbpf.export.answers import Answer, Verdict, words
from otelbpf.export.exporters import Signal

# There is no code for it. Go's and C's servers (RESOURCE_EXHAUSTED), Rust's (OUT_OF_RANGE, else a
# passing failure), Java's; a collector that takes no longer body over HTTP (400); and a proxy that
# speaks HTTP/2 and no gRPC, as nginx with client_max_body_size (UNKNOWN).
_TOO_LARGE = (
    "larger than max", "too large", "exceeds maximum size", "http2 header with status: 413"
)  # fmt: skip
# Retried whatever they say; RESOURCE_EXHAUSTED only where the server says when.
_GRPC_LATER = frozenset(
    ("CANCELLED", "DEADLINE_EXCEEDED", "ABORTED", "OUT_OF_RANGE", "UNAVAILABLE", "DATA_LOSS")
)
_HTTP_LATER = frozenset((429, 502, 503, 504))


def of_grpc_status(code: str, details: str, status_details: bytes | None) -> Answer:
    """The answer of a gRPC server that did not say OK, or of gRPC that found none.

    Args:
        status_details: the trailing metadata's grpc-status-details-bin.
    """
    reason = f"gRPC {code}" + _after_colon(words(details))
    if _says_too_large(details):
        return Answer(Verdict.TOO_LARGE, reason)
    after_s = _retry_info_s(status_details or b"")
    is_passing = code in _GRPC_LATER or (code == "RESOURCE_EXHAUSTED" and after_s is not None)
    return Answer(Verdict.LATER if is_passing else Verdict.REFUSED, reason, after_s=after_s)


def of_http_status(
    status: int, phrase: str, headers: dict[str, str], body: bytes, signal: Signal
) -> Answer:
    """The answer of an HTTP server.

    Args:
        headers: by lower-case names.
        body: as much of it as came.
    """
    kind = headers.get("content-type", "").lower()
    if 200 <= status < 300:
        return of_response(body, signal, is_json="json" in kind)
    said = _body_words(body, kind)
    if 300 <= status < 400 and (elsewhere := headers.get("location")):
        said = f"to {elsewhere}"
    reason = f"HTTP {status} {words(phrase)}".rstrip() + _after_colon(words(said))
    if status == 413 or (status == 400 and _says_too_large(said)):
        return Answer(Verdict.TOO_LARGE, reason)
    if status in _HTTP_LATER:
        return Answer(Verdict.LATER, reason, after_s=_retry_after_s(headers.get("retry-after")))
    return Answer(Verdict.REFUSED, reason)


def of_response(message: bytes, signal: Signal, *, is_json: bool = False) -> Answer:
    """The answer of a receiver that has taken a message, perhaps but for a part of it."""
    response = (
        ExportTraceServiceResponse() if signal is Signal.TRACES else ExportMetricsServiceResponse()
    )
    try:
        if is_json:
            Parse(message, response, ignore_unknown_fields=True)
        else:
            response.ParseFromString(message)
    except (DecodeError, ParseError, UnicodeDecodeError):
        # No answer of OTLP's, after a status that says success.
        return Answer(Verdict.TAKEN)
    rejected = (
        response.partial_success.rejected_spans
        if isinstance(response, ExportTraceServiceResponse)
        else response.partial_success.rejected_data_points
    )
    return Answer(Verdict.TAKEN, words(response.partial_success.error_message), max(0, rejected))


def _after_colon(text: str) -> str:
    return f": {text}" if text else ""


def _says_too_large(text: str) -> bool:
    return any(each in text.lower() for each in _TOO_LARGE)


def _body_words(body: bytes, kind: str) -> str:
    """What an error's body says: OTLP's Status, or what something on the way wrote."""
    if "protobuf" in kind:
        try:
            return str(Status.FromString(body).message)
        except DecodeError:
            return ""
    text = body.decode(errors="replace")
    if "json" in kind:
        try:
            return Parse(text, Status(), ignore_unknown_fields=True).message or text
        except ParseError:
            return text
    return re.sub(r"(?s)<style.*?</style>|<[^>]*>", " ", text) if "html" in kind else text


def _retry_info_s(status_details: bytes) -> float | None:
    """When a gRPC server wants to be asked again."""
    try:
        details = Status.FromString(status_details).details
        info = RetryInfo()
        if any(detail.Unpack(info) for detail in details):
            delay = info.retry_delay
            return max(0.0, float(delay.seconds) + float(delay.nanos) / 1e9)
    except DecodeError:
        pass
    return None


def _retry_after_s(value: str | None) -> float | None:
    """Retry-After: seconds, or a date.

    Source:
        RFC 9110, 10.2.3.
    """
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None

# SPDX-License-Identifier: Apache-2.0
"""Ready bytes through an official exporter's own channel or session, once, and what was answered.

The exporter is made as always, so endpoint, headers, TLS, credentials, compression, proxies and
time-out are as OpenTelemetry's variables say. Of it only the way out is used. Doors know protocols
and no policy: otelbpf.delivery decides what is tried again.

The exporters' attributes that are used here are not public. tests/unit/test_doors.py takes away
each of them: without one of them door_of() finds no door, and export() is used, which says less.
"""

from __future__ import annotations

import gzip
import threading
import time
from typing import TYPE_CHECKING, Any

from otelbpf.export import responses
from otelbpf.export.answers import Answer, Door, Verdict, of_error, words
from otelbpf.export.exporters import Signal

if TYPE_CHECKING:
    import requests

#: Collectors refuse gRPC messages above 4 MiB.
MOST_OCTETS = 3 << 20
_SERVICES = {
    Signal.TRACES: "opentelemetry.proto.collector.trace.v1.TraceService",
    Signal.METRICS: "opentelemetry.proto.collector.metrics.v1.MetricsService",
}
# Of a body; a Status and a partial success are far shorter.
_MOST_BODY = 64 << 10
_LEAST_TIMEOUT_S = 0.001


def door_of(exporter: Any, signal: Signal) -> Door[bytes] | None:
    """The way out of an official OTLP exporter; None: it has none that is known here."""
    for door in (GrpcDoor, HttpDoor):
        try:
            return door(exporter, signal)
        except AttributeError:
            continue
    return None


def _beyond_all(octets: bytes) -> Answer | None:
    if len(octets) <= MOST_OCTETS:
        return None
    return Answer(Verdict.TOO_LARGE, f"{len(octets):,} bytes are more than collectors take")


class GrpcDoor:
    """By a gRPC exporter's channel."""

    def __init__(self, exporter: Any, signal: Signal) -> None:
        self._exporter = exporter
        self._signal = signal
        self._headers, self._timeout_s = exporter._headers, exporter._timeout
        self._renew_channel = exporter._initialize_channel_and_stub
        self._changing = threading.Lock()
        self._closed = False
        self._open()

    def _open(self) -> None:
        # Without serializers: bytes go in and come out.
        self._export = self._exporter._channel.unary_unary(f"/{_SERVICES[self._signal]}/Export")

    def send(self, octets: bytes, within_s: float) -> Answer:
        """Sends a serialized Export…ServiceRequest, once."""
        import grpc

        if (beyond := _beyond_all(octets)) is not None:
            return beyond
        timeout_s = max(_LEAST_TIMEOUT_S, min(self._timeout_s, within_s))
        try:
            response = self._export(octets, metadata=self._headers, timeout=timeout_s)
        except grpc.RpcError as error:
            trailers = {each.key: each.value for each in error.trailing_metadata() or ()}
            answer = responses.of_grpc_status(
                error.code().name, error.details() or "", trailers.get("grpc-status-details-bin")
            )
            if error.code() is grpc.StatusCode.UNAVAILABLE and answer.after_s is None:
                self._renew()
            return answer
        except ValueError as error:  # the channel was closed
            return Answer(Verdict.LATER, words(str(error)))
        return responses.of_response(response, self._signal)

    def _renew(self) -> None:
        """A channel that could not connect waits by itself, up to two minutes; a new one tries."""
        with self._changing:
            if not self._closed:
                self._exporter._channel.close()
                self._renew_channel()
                self._open()

    def close(self) -> None:
        """Ends the try that is under way."""
        with self._changing:
            self._closed = True
            self._exporter.shutdown()


class HttpDoor:
    """By an HTTP exporter's session."""

    def __init__(self, exporter: Any, signal: Signal) -> None:
        client = exporter._client
        self._exporter = exporter
        self._signal = signal
        self._session: requests.Session = client._transport._session
        self._endpoint, self._headers = client._endpoint, client._headers
        encodings = [v for name, v in self._headers.items() if name.lower() == "content-encoding"]
        self._compressed = _gzip if encodings == ["gzip"] else client._compress
        # Who is sent what nothing says is compressed cannot read it.
        if not encodings and self._compressed(b""):
            raise AttributeError("its headers have no Content-Encoding")
        self._timeout_s = client._timeout
        self._has_kept_a_connection = False
        self._closed = False

    def send(self, octets: bytes, within_s: float) -> Answer:
        """Sends a serialized Export…ServiceRequest, once."""
        if (beyond := _beyond_all(octets)) is not None:
            return beyond
        if self._closed:
            return Answer(Verdict.LATER, "the session was closed")
        octets = self._compressed(octets)
        end = time.monotonic() + min(self._timeout_s, within_s)
        try:
            response = self._post_or_again(octets, end)
        except Exception as error:
            return of_error(error)
        # To be closed: what is left of its body is not waited for.
        with response:
            body, is_whole = _read(response, end)
        self._has_kept_a_connection = is_whole
        headers = {name.lower(): value for name, value in response.headers.items()}
        return responses.of_http_status(
            response.status_code, response.reason or "", headers, body, self._signal
        )

    def _post_or_again(self, octets: bytes, end: float) -> requests.Response:
        """Once more at once where the connection was an old one that the other side has closed."""
        import requests.exceptions

        may_be_old, self._has_kept_a_connection = self._has_kept_a_connection, False
        try:
            return self._post(octets, end)
        except requests.exceptions.ConnectionError as error:
            if not (may_be_old and _was_cut_off(error)):
                raise
        return self._post(octets, end)

    def _post(self, octets: bytes, end: float) -> requests.Response:
        from urllib3 import Timeout

        # Of connecting and waiting together; requests takes it, and its types do not say so.
        timeout: Any = Timeout(total=max(_LEAST_TIMEOUT_S, end - time.monotonic()))
        return self._session.request(
            "POST", self._endpoint, headers=self._headers, data=octets, allow_redirects=False,
            timeout=timeout,
            # So that a body's end is waited for no longer than all the rest.
            stream=True,
            # Else REQUESTS_CA_BUNDLE would go before OTEL_EXPORTER_OTLP_CERTIFICATE.
            verify=self._session.verify,
        )  # fmt: skip

    def close(self) -> None:
        """Closes connections that are not in use: a try that is under way goes on."""
        self._closed = True
        self._exporter.shutdown()


def _gzip(octets: bytes) -> bytes:
    """At the lowest level: the exporter's own, the highest, takes five times as long for spans, and
    leaves 28% of them instead of 29%."""
    try:
        from isal import igzip
    except ImportError:
        return gzip.compress(octets, 1)
    compressed: bytes = igzip.compress(octets, compresslevel=1)
    return compressed


def _was_cut_off(error: requests.exceptions.ConnectionError) -> bool:
    from urllib3.exceptions import ProtocolError

    return bool(error.args) and isinstance(error.args[0], ProtocolError)


def _read(response: requests.Response, end: float) -> tuple[bytes, bool]:
    """(as much of the body as comes in time, whether that is all)."""
    body = bytearray()
    try:
        # Larger pieces are waited for until they are whole.
        for octet in response.iter_content(1):
            body += octet
            if len(body) >= _MOST_BODY or time.monotonic() >= end:
                return bytes(body), False
    except Exception:  # the status was said, and decides
        return bytes(body), False
    return bytes(body), True

# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's environment variables, before anything reads them.

Its libraries read them by themselves, some while they are imported, and not all of them mind what a
variable may hold. So they are left only what otelbpf has a use for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from urllib.parse import unquote

from otelbpf.errors import UsageError

# All else is meant for the SDK of a traced application.
_KNOWN = {
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_EXPORTER",
    "OTEL_METRICS_EXPORTER",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_METRIC_EXPORT_INTERVAL",
    "OTEL_METRIC_EXPORT_TIMEOUT",
}
# Any exporter that is installed can be named, and may have variables of its own.
_KNOWN_PREFIXES = ("OTEL_BSP_", "OTEL_EXPORTER_", "OTEL_PYTHON_EXPORTER_")
_FILES = ("CERTIFICATE", "CLIENT_KEY", "CLIENT_CERTIFICATE")
# RFC 9110, token.
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_COMPRESSION = "OTEL_EXPORTER_OTLP_COMPRESSION"
_COMPRESSION_OF = (
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
)


def settle(environment: MutableMapping[str, str]) -> None:
    """Takes away what otelbpf has no use for, and what is empty: that is as if it were not set.

    Raises:
        UsageError: one that it has a use for is not UTF-8.
    """
    for name, value in list(environment.items()):
        if not name.startswith("OTEL_"):
            continue
        if not value.strip() or not (name in _KNOWN or name.startswith(_KNOWN_PREFIXES)):
            del environment[name]
        elif not _is_utf8(value):
            raise UsageError(f"{name} is not UTF-8, as all that is exported must be")
    _settle_compression(environment)


def _settle_compression(environment: MutableMapping[str, str]) -> None:
    """`none` is the specification's word, which gRPC's exporter refuses: as if it were not set."""

    def is_none(name: str) -> bool:
        return environment.get(name, "").strip().lower() == "none"

    if any(map(is_none, _COMPRESSION_OF)) and _COMPRESSION in environment:
        # What holds for both signals is then meant for the other one.
        of_both = environment.pop(_COMPRESSION)
        for name in _COMPRESSION_OF:
            environment.setdefault(name, of_both)
    for name in filter(is_none, (_COMPRESSION, *_COMPRESSION_OF)):
        del environment[name]


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def require_otlp(environment: Mapping[str, str], signal: str, *, grpc: bool) -> None:
    """Refuses what an exporter of OTLP would take, and then do without or never export anything.

    Args:
        signal: "traces" or "metrics".
        grpc: does it export over gRPC?
    Raises:
        UsageError: a file that cannot be read, no time to export in, or two words about TLS.
    """

    def given(what: str) -> list[tuple[str, str]]:
        """The variables that say it, and what they say; the first one counts."""
        names = (f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
        return [(name, environment[name].strip()) for name in names if name in environment]

    for kind in _FILES:
        for name, path in given(kind):
            _require_file(name, path, kind, grpc=grpc)
    for name, text in given("HEADERS"):
        for header in filter(None, (each.strip() for each in text.split(","))):
            if not _is_header(header, grpc=grpc):
                raise UsageError(
                    f"{name} has {header!r}, which cannot be sent",
                    "write NAME=VALUE,NAME=VALUE in ASCII, and percent-encode what is not a letter "
                    "or a digit",
                )
    for name, text in given("TIMEOUT"):
        if not _is_time(text):
            raise UsageError(f"{name}={text} is no number of seconds above 0")
    for name, text in given("INSECURE"):
        if text.lower() not in ("true", "false"):
            raise UsageError(f"{name}={text} is neither true nor false")
    asks_for_tls = [name for name, text in given("INSECURE")[:1] if text.lower() == "false"]
    endpoint = next((text for _, text in given("ENDPOINT")), "http://localhost:4317")
    if grpc and asks_for_tls and endpoint.lower().startswith("http://"):
        raise UsageError(
            f"{asks_for_tls[0]}=false asks for TLS, and the endpoint {endpoint} for none",
            "write https:// for TLS, or leave that variable out",
        )


def _require_file(name: str, path: str, kind: str, *, grpc: bool) -> None:
    """gRPC's exporter would trust others where it cannot read; HTTP's would fail at each try."""
    if kind == "CERTIFICATE" and not grpc and Path(path).is_dir():
        return  # of authorities by their hashes, as c_rehash makes it
    try:
        open(path, "rb").close()
        if kind == "CERTIFICATE":
            import ssl  # 7 ms, which others need not wait for

            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(path)
    except OSError as error:  # as ssl.SSLError is
        raise UsageError(
            f"cannot read {path}, which {name} names ({error.strerror})",
            "give the path of a file in PEM format",
        ) from error


def _is_header(header: str, *, grpc: bool) -> bool:
    """gRPC's metadata are of ASCII; other headers may hold Latin-1."""
    name, equals, value = header.partition("=")
    try:
        told = unquote(value).encode("ascii" if grpc else "latin-1")
    except UnicodeEncodeError:
        return False
    is_plain = not any(octet < 0x20 or octet == 0x7F for octet in told)
    return bool(equals and is_plain and _HEADER_NAME.fullmatch(unquote(name).strip()))


def _is_time(text: str) -> bool:
    try:
        return 0.0 < float(text) < 1e9
    except ValueError:
        return False

# SPDX-License-Identifier: Apache-2.0
"""Which official exporter OpenTelemetry's variables ask for, and whether it can be had."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any

from otelbpf.errors import UsageError
from otelbpf.export.endpoints import require_understood, to_show
from otelbpf.export.variables import require_otlp

_BY_PROTOCOL = {"grpc": "otlp_proto_grpc", "http/protobuf": "otlp_proto_http"}


class Signal(StrEnum):
    """What is exported, as it is called in the names of variables and of entry points."""

    TRACES = "traces"
    METRICS = "metrics"


def whole_number(
    environment: Mapping[str, str], name: str, default: float, most: int = 999_999_999
) -> float:
    """The number that the variable `name` has; `default` where it is not set.

    Raises:
        UsageError: it is no whole number, or none from 1 to `most`.
    """
    text = environment.get(name, "").strip()
    if not text:
        return default
    if not (text.isascii() and text.isdigit() and len(text) <= 9 and 1 <= int(text) <= most):
        raise UsageError(f"{name}={text} is no whole number from 1 to {most}")
    return int(text)


def _variables(signal: Signal, what: str) -> tuple[str, str]:
    """The variable for one signal, and the one for all, which it goes before."""
    return f"OTEL_EXPORTER_OTLP_{signal.upper()}_{what}", f"OTEL_EXPORTER_OTLP_{what}"


def _given(environment: Mapping[str, str], signal: Signal, what: str) -> str:
    """What the variables say; empty where they say nothing."""
    given = (environment.get(name, "").strip() for name in _variables(signal, what))
    return next(filter(None, given), "")


def exporter_name(environment: Mapping[str, str], signal: Signal = Signal.TRACES) -> str:
    """Which exporter OTEL_TRACES_EXPORTER and OTEL_EXPORTER_OTLP_PROTOCOL ask for.

    Args:
        signal: for METRICS it is OTEL_METRICS_EXPORTER.
    Raises:
        UsageError: more than one, or a protocol that OTLP does not have.
    """
    variable = f"OTEL_{signal.upper()}_EXPORTER"
    name = environment.get(variable, "").strip() or "otlp"
    if "," in name:
        raise UsageError(
            f"{variable}={name} names several exporters: otelbpf sends to one; let an "
            "OpenTelemetry collector send on to others"
        )
    if name != "otlp":
        return name
    protocol = _given(environment, signal, "PROTOCOL") or "grpc"
    if protocol not in _BY_PROTOCOL:
        raise UsageError(
            f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not supported: "
            f"it is one of {', '.join(_BY_PROTOCOL)}"
        )
    return _BY_PROTOCOL[protocol]


def is_otlp(name: str) -> bool:
    """Is this exporter one that sends OTLP over a network?"""
    return name in _BY_PROTOCOL.values()


def require_endpoint(
    environment: Mapping[str, str], name: str, signal: Signal = Signal.TRACES
) -> None:
    """Raises UsageError for an endpoint that the exporter could not send to, or not to there."""
    if not is_otlp(name):
        return
    grpc = name == _BY_PROTOCOL["grpc"]
    insecure = environment.get("OTEL_EXPORTER_OTLP_INSECURE", "").strip().lower() == "true"
    own, of_all = _variables(signal, "ENDPOINT")
    for variable in (own, of_all):
        endpoint = environment.get(variable, "").strip()
        if endpoint:
            require_understood(
                variable, endpoint, grpc=grpc, insecure=insecure,
                is_base=variable == of_all and not grpc,
            )  # fmt: skip
            return  # the signal's own goes before the one for all


def asked_for(environment: Mapping[str, str], signal: Signal) -> str:
    """The name of the exporter that the variables ask for.

    Raises:
        UsageError: what they say of it is refused, or it would take it for something else.
    """
    name = exporter_name(environment, signal)
    require_endpoint(environment, name, signal)
    if is_otlp(name):
        require_otlp(environment, signal, grpc=name == _BY_PROTOCOL["grpc"])
    return name


def destination(environment: Mapping[str, str], name: str, signal: Signal = Signal.TRACES) -> str:
    """Where the spans or the metrics go, for people."""
    if not is_otlp(name):
        return name
    protocol = next(key for key, value in _BY_PROTOCOL.items() if value == name)
    default = "http://localhost:4317" if protocol == "grpc" else "http://localhost:4318"
    endpoint = _given(environment, signal, "ENDPOINT") or default
    return f"{to_show(endpoint)} ({protocol})"


def load_exporter(
    name: str, signal: Signal, others: Sequence[str], arguments: Mapping[str, Any]
) -> Any:
    """Makes the exporter that an entry point calls `name`.

    Args:
        others: what else the signal's variable may say, for the error.
        arguments: of the exporter.
    Raises:
        UsageError: no such exporter, or it refuses its configuration.
    """
    # Only here: whoever exports nothing need not wait for it.
    from importlib.metadata import entry_points

    found = {point.name: point for point in entry_points(group=f"opentelemetry_{signal}_exporter")}
    if name not in found:
        raise UsageError(
            f"OTEL_{signal.upper()}_EXPORTER={name} is not installed: there are "
            + ", ".join(dict.fromkeys((*others, *sorted(found))))
        )
    try:
        return found[name].load()(**arguments)
    except Exception as error:
        raise UsageError(
            f"exporter {name} cannot start ({error}): check the OTEL_EXPORTER_OTLP_* variables"
        ) from error

# SPDX-License-Identifier: Apache-2.0
"""Makes an application's server span the child of otelbpf's span of the same request."""

from typing import TYPE_CHECKING, Any

from otelbpf_plugin.propagator import OtelbpfPropagator

if TYPE_CHECKING:
    from otelbpf_plugin.instrumentor import OtelbpfInstrumentor

__all__ = ["OtelbpfInstrumentor", "OtelbpfPropagator"]


def __getattr__(name: str) -> Any:
    # Later, because with OTEL_PROPAGATORS naming us, OpenTelemetry imports this package in the
    # middle of importing what the instrumentor needs.
    if name == "OtelbpfInstrumentor":
        from otelbpf_plugin.instrumentor import OtelbpfInstrumentor

        return OtelbpfInstrumentor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

# SPDX-License-Identifier: Apache-2.0
"""Makes an application's server span the child of otelbpf's span of the same request."""

from otelbpf_plugin.instrumentor import OtelbpfInstrumentor
from otelbpf_plugin.propagator import OtelbpfPropagator

__all__ = ["OtelbpfInstrumentor", "OtelbpfPropagator"]

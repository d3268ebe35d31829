# SPDX-License-Identifier: Apache-2.0
"""Which requests become spans: the rules, which bpf/ledger/sampling.h applies.

Source:
    the samplers of the OpenTelemetry specification, of which TraceIdRatioBased as the Python
    SDK computes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from otelbpf.errors import UsageError
from otelbpf.kernel.records import SamplerKeeps

_SAMPLERS = (
    "always_on",
    "always_off",
    "traceidratio",
    "parentbased_always_on",
    "parentbased_always_off",
    "parentbased_traceidratio",
)
_ALL = 1 << 64


@dataclass(frozen=True)
class Sampler:
    """Decides which requests become spans.

    Attributes:
        bound: a new trace is kept if the low half of its id is below this, 2**64 keeps all.
        parent_based: a caller's sampled flag decides instead, where there is one.
        keep_errors: what failed is kept, whatever was decided.
        keep_4xx: and so is what servers have answered with 4xx, though that was the client's fault.
    """

    bound: int = _ALL
    parent_based: bool = True
    keep_errors: bool = False
    keep_4xx: bool = False

    @classmethod
    def one_in(cls, n: int) -> Sampler:
        """Keeps one in n new traces, what callers have sampled, and errors."""
        return cls(_ALL // n, parent_based=True, keep_errors=True)

    @classmethod
    def from_environment(cls, environment: Mapping[str, str]) -> Sampler:
        """As OTEL_TRACES_SAMPLER and OTEL_TRACES_SAMPLER_ARG say.

        Raises:
            UsageError: an unknown sampler, or a ratio that is not within 0..1.
        """
        name = environment.get("OTEL_TRACES_SAMPLER", "").strip().lower()
        name = name or "parentbased_always_on"
        if name not in _SAMPLERS:
            raise UsageError(
                f"OTEL_TRACES_SAMPLER={name} is no sampler that otelbpf knows: it knows "
                + ", ".join(_SAMPLERS)
            )
        parent_based = name.startswith("parentbased_")
        kind = name.removeprefix("parentbased_")
        if kind != "traceidratio":
            return cls(_ALL if kind == "always_on" else 0, parent_based)
        argument = environment.get("OTEL_TRACES_SAMPLER_ARG", "").strip() or "1.0"
        try:
            ratio = float(argument)
        except ValueError:
            ratio = -1.0
        if not 0.0 <= ratio <= 1.0:
            raise UsageError(
                f"OTEL_TRACES_SAMPLER_ARG={argument} is no ratio: {name} takes a number from 0 to 1"
            )
        return cls(round(ratio * _ALL), parent_based)

    def settings(self) -> dict[str, int]:
        """What the programs are told of it: the values of fields of struct settings."""
        keeps = {0: SamplerKeeps.NONE, _ALL: SamplerKeeps.ALL}.get(self.bound, SamplerKeeps.SOME)
        return {
            "sampler_keeps": keeps,
            "sampler_bound": self.bound % _ALL,
            "parent_based": self.parent_based,
            "keep_errors": self.keep_errors,
            "keep_4xx": self.keep_4xx,
        }


@dataclass(frozen=True)
class Slow:
    """From when on a request is slow, and kept.

    Attributes:
        ns: where nothing else is said of its route; None: never.
        by_route: (template, ns).
    """

    ns: int | None = None
    by_route: tuple[tuple[str, int], ...] = ()

    _NEVER = (1 << 64) - 1

    @classmethod
    def of_times(cls, times: Iterable[tuple[str, int]]) -> Slow:
        """Of (route, ns), of which the last one counts; an empty route means all others."""
        by_route = dict(times)
        return cls(by_route.pop("", None), tuple(by_route.items()))

    def __bool__(self) -> bool:
        return self.ns is not None or bool(self.by_route)

    def of(self, route: str) -> int:
        """The ns from which on a request of this route is slow."""
        return dict(self.by_route).get(route, self._NEVER if self.ns is None else self.ns)

# SPDX-License-Identifier: Apache-2.0
"""The samplers decide as the SDK's own do."""

from __future__ import annotations

import random

import numpy as np
import pytest
from opentelemetry.sdk.trace import sampling
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

from otelbpf.context import _SAMPLERS, Contexts, Sampler
from otelbpf.errors import UsageError

COUNT = 10_000
RATIOS = ("0", "1", "0.5", "0.1", "1e-3", "0.999999", "1e-19", "5e-20")


def edges(bound: int) -> list[int]:
    """The ids on either side of a ratio's border."""
    return [value for value in (bound - 1, bound, 0, (1 << 64) - 1) if 0 <= value < 1 << 64]


def some_contexts(bound: int) -> Contexts:
    """COUNT random ones, a third of them without a parent, among them the border's."""
    random_ = random.Random(4711)
    ids = np.array([random_.getrandbits(64) for _ in range(3 * COUNT)], np.uint64).reshape(3, -1)
    ids[1, : len(edges(bound))] = edges(bound)
    ids[2, ::3] = 0
    flags = np.array([random_.getrandbits(8) for _ in range(COUNT)], np.uint8)
    flags[::3] = 0
    none = np.zeros(COUNT, bool)
    return Contexts(ids[0], ids[1], ids[0], ids[2], flags, ids[2] != 0, none, none,
                    np.zeros(COUNT, np.uint64), none)


def by_the_sdk(sampler: sampling.Sampler, contexts: Contexts) -> list[bool]:
    kept = []
    for high, low, parent, flags in zip(
        contexts.trace_id_high.tolist(),
        contexts.trace_id_low.tolist(),
        contexts.parent_span_id.tolist(),
        contexts.flags.tolist(),
        strict=True,
    ):
        trace_id = high << 64 | low
        around = None
        if parent:
            remote = SpanContext(trace_id, parent, is_remote=True, trace_flags=TraceFlags(flags))
            around = set_span_in_context(NonRecordingSpan(remote))
        kept.append(sampler.should_sample(around, trace_id, "GET").decision.is_sampled())
    return kept


def environment(name: str, argument: str = "") -> dict[str, str]:
    return {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}


CASES = [
    (name, argument)
    for name in _SAMPLERS
    for argument in (RATIOS if "ratio" in name else ("",))
]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_decides_as_the_sdk(
    name: str, argument: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in environment(name, argument).items():
        monkeypatch.setenv(key, value)
    theirs = sampling._get_from_env_or_default()
    ours = Sampler.from_environment(environment(name, argument))
    contexts = some_contexts(ours.bound)
    kept = ours.keeps(contexts)
    assert kept.dtype == bool
    assert kept.tolist() == by_the_sdk(theirs, contexts)


def test_every_sampler_of_the_sdk_is_known() -> None:
    assert set(_SAMPLERS) == set(sampling._KNOWN_SAMPLERS)


def test_the_share_that_is_kept() -> None:
    contexts = some_contexts(0)
    half = Sampler.from_environment(environment("traceidratio", "0.5"))
    assert 4_800 < half.keeps(contexts).sum() < 5_200
    for name, count in (("always_on", COUNT), ("always_off", 0)):
        assert Sampler.from_environment(environment(name)).keeps(contexts).sum() == count


@pytest.mark.parametrize("unset", [{}, environment(""), environment("  ")])
def test_the_default_honours_the_caller(unset: dict[str, str]) -> None:
    assert Sampler.from_environment(unset) == Sampler(1 << 64, parent_based=True)


def test_a_ratio_of_its_own_is_one() -> None:
    assert Sampler.from_environment(environment("traceidratio")) == Sampler(1 << 64, False)


@pytest.mark.parametrize("name", ["ALWAYS_ON", "Always_On", " always_on "])
def test_names_in_any_case(name: str) -> None:
    """As the specification of environment variables asks for enumerations."""
    assert Sampler.from_environment(environment(name)) == Sampler(1 << 64, parent_based=False)


@pytest.mark.parametrize("name", ["always", "jaeger_remote", "xray", "parentbased_", "1"])
def test_unknown_samplers_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^OTEL_TRACES_SAMPLER={name} is no sampler .*always_on"):
        Sampler.from_environment(environment(name))


@pytest.mark.parametrize("argument", ["-0.1", "1.1", "half", "nan", "inf", "0,5", "50%"])
@pytest.mark.parametrize("name", ["traceidratio", "parentbased_traceidratio"])
def test_bad_ratios_are_refused(name: str, argument: str) -> None:
    with pytest.raises(UsageError) as refusal:
        Sampler.from_environment(environment(name, argument))
    assert str(refusal.value) == (
        f"OTEL_TRACES_SAMPLER_ARG={argument} is no ratio: {name} takes a number from 0 to 1"
    )


def test_an_argument_that_no_sampler_asks_for_is_let_be() -> None:
    assert Sampler.from_environment(environment("always_off", "half")) == Sampler(0, False)

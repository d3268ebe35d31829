# SPDX-License-Identifier: Apache-2.0
"""What the samplers' names mean."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

import pytest
from opentelemetry.sdk.trace import sampling

from otelbpf.errors import UsageError
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import SamplerKeeps
from otelbpf.policy.sampler import _SAMPLERS, Sampler, Slow

RATIOS = ("0", "1", "0.5", "0.1", "1e-3", "0.999999", "1e-19", "5e-20")


def environment(name: str, argument: str = "") -> dict[str, str]:
    return {"OTEL_TRACES_SAMPLER": name, "OTEL_TRACES_SAMPLER_ARG": argument}


CASES = [
    (name, argument) for name in _SAMPLERS for argument in (RATIOS if "ratio" in name else ("",))
]


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_the_bound_is_the_sdks(name: str, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of new traces the same are kept; what the kernel does of it is tested with the kernel."""
    for key, value in environment(name, argument).items():
        monkeypatch.setenv(key, value)
    theirs = sampling._get_from_env_or_default()
    ours = Sampler.from_environment(environment(name, argument))
    assert ours.parent_based == isinstance(theirs, sampling.ParentBased)
    for low in (0, 1, ours.bound - 1, ours.bound, (1 << 64) - 1):
        if 0 <= low < 1 << 64:
            kept = theirs.should_sample(None, 7 << 64 | low, "GET").decision.is_sampled()
            assert kept == (low < ours.bound), low


def test_every_sampler_of_the_sdk_is_known() -> None:
    assert set(_SAMPLERS) == set(sampling._KNOWN_SAMPLERS)


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


def test_from_when_on_a_request_is_slow() -> None:
    slow = Slow(5_000_000, (("/upload", 2_000_000_000),))
    assert (slow.of("/upload"), slow.of("/other")) == (2_000_000_000, 5_000_000)
    assert Slow(None, (("/upload", 1),)).of("/other") == (1 << 64) - 1
    assert not Slow()
    assert Slow(1) and Slow(None, (("/", 1),))


def test_one_in_n_keeps_errors_too() -> None:
    assert Sampler.one_in(1) == Sampler(1 << 64, parent_based=True, keep_errors=True)
    assert Sampler.one_in(4).bound == 1 << 62


@pytest.mark.parametrize("before", [Sampler(), Sampler(0), Sampler.one_in(7)])
@pytest.mark.parametrize("after", [Sampler(), Sampler(0), Sampler.one_in(3), Sampler.one_in(7)])
def test_while_it_is_told_to_programs_that_run_it_is_the_one_or_the_other(
    before: Sampler, after: Sampler
) -> None:
    """They may look between any two words of it."""

    def keeps(told: Mapping[str, int]) -> tuple[int, int]:
        some = told["sampler_keeps"] == SamplerKeeps.SOME
        return told["sampler_keeps"], told["sampler_bound"] if some else 0

    class Words(dict[str, int]):
        def __setitem__(self, name: str, value: int) -> None:
            super().__setitem__(name, value)
            seen.append(keeps(self))

    seen: list[tuple[int, int]] = []
    words = Words(before.settings())
    programs = object.__new__(Programs)
    programs._settings = SimpleNamespace(values=words)  # type: ignore[assignment]
    programs.set_sampler(after.settings())
    assert dict(words) == after.settings()
    assert {*seen} <= {keeps(before.settings()), keeps(after.settings())}

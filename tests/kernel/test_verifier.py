# SPDX-License-Identifier: Apache-2.0
"""No program takes much more of the verifier than it did: from a million on it is refused."""

from __future__ import annotations

import pytest
from verifier import CONFIGURATIONS, budget, looked_at, setting

MOST = 150_000


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_no_program_takes_a_tenth_more_than_its_budget(configuration: str) -> None:
    """If it shall take more: bench/verifier.py --write, and say why in the commit."""
    allowed = budget()
    if setting() != allowed["setting"]:
        pytest.skip(f"the budget is of {allowed['setting']}: here are {setting()}")
    measured, budgets = looked_at(configuration), allowed["programs"][configuration]
    assert measured.keys() == budgets.keys()
    # What looks at next to nothing may look at some instructions more.
    too_many = {
        name: (count, budgets[name])
        for name, count in measured.items()
        if count > budgets[name] * 1.1 + 100
    }
    assert not too_many


@pytest.mark.parametrize("configuration", CONFIGURATIONS)
def test_no_program_is_near_the_limit(configuration: str) -> None:
    """Whatever a later kernel's verifier may look at once more: it may look at a million."""
    measured = looked_at(configuration)
    assert max(measured.values()) <= MOST, measured

# SPDX-License-Identifier: Apache-2.0
"""A ledger's stages, found one by one: what the product does for many at once is to be the same."""

from __future__ import annotations

import itertools
from typing import NamedTuple

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import stage_name


class Stage(NamedTuple):
    """The time between two neighbouring stamps.

    Attributes:
        name: the two stamps, as in `nic_to_tc`.
        start_ktime_ns, end_ktime_ns: CLOCK_MONOTONIC.
    """

    name: str
    start_ktime_ns: int
    end_ktime_ns: int


def stages_of(stamps: list[int]) -> tuple[Stage, ...]:
    """Tiles a ledger into stages.

    Neighbours in time are neighbours in the ledger, so the stages never overlap
    and add up to the whole; stamps of the same nanosecond keep the order of
    the way.

    Args:
        stamps: those that bound stages, by enum stamp, as bounds_of() gives them: CLOCK_MONOTONIC
            ns; 0 is absent.
    Returns:
        one stage fewer than there are stamps, or a single one without length,
        named after the stamp, where there is only one.
    """
    present = sorted((ktime_ns, stamp) for stamp, ktime_ns in enumerate(stamps) if ktime_ns)
    if len(present) == 1:
        ktime_ns, stamp = present[0]
        return (Stage(Stamp(stamp).name.lower(), ktime_ns, ktime_ns),)
    return tuple(
        Stage(stage_name(first, second), start, end)
        for (start, first), (end, second) in itertools.pairwise(present)
    )

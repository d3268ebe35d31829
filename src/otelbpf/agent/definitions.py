# SPDX-License-Identifier: Apache-2.0
"""What is measured, and how, in the words of bpf/."""

from __future__ import annotations

from collections.abc import Collection
from enum import StrEnum

from otelbpf.ledger.ids import Ids
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams, any_of

_NO_UPSTREAMS = Upstreams()
_KEEP_ALL = Sampler()


class Part(StrEnum):
    """What of bpf/ is compiled only where it is asked for; the names of its macros."""

    HANDLERS = "HANDLERS"
    GO_HANDLERS = "GO_HANDLERS"


def definitions(
    netns_cookie: int,
    ports: Collection[int] = (),
    *,
    upstreams: Upstreams = _NO_UPSTREAMS,
    sampler: Sampler = _KEEP_ALL,
    ids: Ids | None = None,
    parts: Collection[Part] = (),
) -> dict[str, object]:
    """What Programs are to be compiled with: macro -> C.

    Args:
        netns_cookie: of the measured network namespace.
        ports: the measured server ports.
        upstreams: whose requests are measured as a client's.
        sampler: decides which requests are kept.
        ids: names the traces that start here; the sampler looks at that.
        parts: of bpf/ that not every run needs.
    """
    return {
        "NETNS_COOKIE": f"{netns_cookie}ull",
        "SERVERS": int(bool(ports)),
        "IS_MEASURED_PORT(p)": any_of(f"(p)=={port}" for port in ports),
        **upstreams.macros(),
        **sampler.macros(),
        **(ids or Ids()).macros(),
        **dict.fromkeys(parts, 1),
    }

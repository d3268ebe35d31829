# SPDX-License-Identifier: Apache-2.0
"""The programs as a whole: the verifier takes them, whatever they are compiled for."""

from __future__ import annotations

import contextlib

import pytest
from lab import Lab
from meter import address

from otelbpf.agent.definitions import Part, definitions
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.kernel.limits import MOST, Limits
from otelbpf.kernel.loader import Programs
from otelbpf.policy.sampler import Sampler
from otelbpf.policy.upstreams import Upstreams

UPSTREAMS = Upstreams(
    ((address("127.0.0.1"), 9001), (address("127.0.0.1"), 9002), (address("fd00::1"), 9003)), (99,)
)

# Those that are loaded only once there is a handler to attach them to.
HANDLERS = [
    f"probed_{kind}"
    for kind in (
        "handler_start",
        "handler_end",
        "handler_return",
        "usdt_start",
        "usdt_end",
        "python_start",
        "python_end",
        "go_start",
        "go_end",
    )
]


# Its limit is on the instructions that it looks at: what is known of sizes and ports changes them.
@pytest.mark.parametrize(
    ("limits", "sampler"),
    [
        pytest.param(Limits(series=256), Sampler(), marks=pytest.mark.guest),
        (Limits(), Sampler()),
        (MOST, Sampler()),
        (Limits(connections=60_001, ring=50_003, series=100), Sampler(1 << 62, keep_errors=True)),
    ],
)
def test_the_verifier_takes_them_all(lab: Lab, limits: Limits, sampler: Sampler) -> None:
    with Btf.of_kernel() as btf:
        choices = choose(btf, metrics=bool(limits.series))
        programs = Programs(btf, choices, limits, definitions(
            lab.server_netns.cookie, (80, 8080, 9001, 9002), upstreams=UPSTREAMS, sampler=sampler,
            parts=Part,
        ))  # fmt: skip
    with contextlib.closing(programs):
        for program in HANDLERS:
            programs.fd(program)

# SPDX-License-Identifier: Apache-2.0
"""The programs as a whole: the verifier takes them, whatever they are compiled for."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping

import pytest
from meter import address
from support.loops import refused_loops

from otelbpf.agent.settings import settings
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.compiler import Compiled
from otelbpf.kernel.hooks import FORCEABLE, Mechanism, choose
from otelbpf.kernel.limits import MOST, Limits
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.loads import Load
from otelbpf.kernel.settings import Part, Settings
from otelbpf.policy.proxies import Forwarding, Header, network
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


PROXIES = (network("192.0.2.7"), network("fd00::/8"))


def load(
    limits: Limits,
    told: Settings,
    loader: Loader = Loader.OBJECT,
    mechanism: Mechanism | None = None,
) -> contextlib.closing[Programs]:
    with Btf.of_kernel() as btf:
        choices = choose(btf, mechanism, metrics=bool(limits.series))
        return contextlib.closing(Programs(btf, choices, limits, told, loader))


@pytest.mark.guest
@pytest.mark.parametrize("mechanism", [None, *FORCEABLE])
@pytest.mark.parametrize("series", [0, 256])
@pytest.mark.parametrize("roles", ["servers", "upstreams", "both"])
def test_the_verifier_takes_the_ready_made_ones(
    roles: str, series: int, mechanism: Mechanism | None
) -> None:
    """What there is not is known to it: each combination is another way for it."""
    told = settings(
        1,
        () if roles == "upstreams" else (80,),
        upstreams=Upstreams() if roles == "servers" else UPSTREAMS,
    )
    with load(Limits(series=series), told, mechanism=mechanism):
        pass


@pytest.mark.guest
def test_the_verifier_takes_those_of_handlers() -> None:
    with load(Limits(), settings(1, (80,), parts=Part)) as programs:
        for program in HANDLERS:
            programs.fd(program)


def test_one_program_is_loaded_for_two_targets() -> None:
    """Which are both tracepoints of sockets."""
    loads = [
        Load("traced_read", libbpf.BPF_TRACE_RAW_TP, target)
        for target in ("tcp_rcv_space_adjust", "tcp_destroy_sock")
    ]
    with load(Limits(), settings(1, (80,))) as programs:
        fds = programs._built.load_all(loads)
        try:
            assert fds.keys() == set(loads)
            assert len({bpf_info.program_info(fd).id for fd in fds.values()}) == len(loads)
        finally:
            for fd in fds.values():
                os.close(fd)


def loops_that_6_1_refuses(programs: Mapping[str, bytes]) -> dict[str, list[tuple[int, int]]]:
    """Which later kernels take. Those of the object: tests/unit/test_objects.py."""
    found = {name: refused_loops(code) for name, code in programs.items()}
    return {name: places for name, places in found.items() if places}


# What is known of sizes changes what it looks at.
SIZES = (Limits(), MOST, Limits(connections=60_001, ring=50_003, series=100))


@pytest.mark.parametrize(
    ("limits", "loader"),
    [
        pytest.param(Limits(series=256), Loader.BCC, marks=pytest.mark.guest),
        *(pytest.param(limits, Loader.OBJECT, marks=pytest.mark.guest) for limits in SIZES),
        *((limits, Loader.BCC) for limits in SIZES),
    ],
)
def test_the_verifier_takes_them_all(limits: Limits, loader: Loader) -> None:
    told = settings(
        1, (80, 8080, 9001, 9002), upstreams=UPSTREAMS, parts=Part, proxies=PROXIES,
        forwarding=Forwarding(PROXIES if loader is Loader.OBJECT else (), Header.FORWARDED),
    )  # fmt: skip
    with load(limits, told, loader) as programs:
        for program in HANDLERS:
            programs.fd(program)
        if isinstance(programs._built, Compiled):
            assert not loops_that_6_1_refuses(programs._built._instructions)

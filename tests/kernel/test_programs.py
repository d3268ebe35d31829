# SPDX-License-Identifier: Apache-2.0
"""The programs as a whole: the verifier takes them, whatever they are compiled for."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from meter import address
from support.loops import refused_loops

from otelbpf.agent.settings import settings
from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.arrays import NO_MAP
from otelbpf.kernel.bpf_object import BpfObject
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.compiler import Compiled
from otelbpf.kernel.hooks import FORCEABLE, Mechanism, choose
from otelbpf.kernel.limits import MOST, Limits
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.loads import Load
from otelbpf.kernel.objects import object_path
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
        "start",
        "end",
        "return",
        "usdt_start",
        "usdt_end",
        "python_start",
        "python_end",
        "go_start",
        "go_end",
    )
]


PROXIES = (network("192.0.2.7"), network("fd00::/8"))


@contextlib.contextmanager
def load(
    limits: Limits,
    told: Settings,
    loader: Loader = Loader.OBJECT,
    mechanism: Mechanism | None = None,
) -> Iterator[Programs]:
    """What is refused fails here, even what an agent would do without."""
    with Btf.of_kernel() as btf:
        choices = choose(btf, mechanism, metrics=bool(limits.series))
        with contextlib.closing(Programs(btf, choices, limits, told, loader)) as programs:
            for choice in choices:
                if choice.chosen is not None and choice.chosen.mechanism is not Mechanism.TC:
                    programs.fd_of(choice.chosen)
            yield programs


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


class MapInfo(ctypes.Structure):
    """struct bpf_map_info up to its name."""

    name: bytes
    _fields_ = [("before_name", ctypes.c_uint32 * 6), ("name", ctypes.c_char * 16)]


def test_what_is_loaded_has_the_names_of_bpf() -> None:
    """As far as the kernel keeps them: programs by libbpf, and the maps that they use."""
    told = settings(1, (80,), upstreams=UPSTREAMS, parts=Part)
    with load(Limits(series=256), told) as programs:
        loaded = {bpf_info.program_info(fd).name for fd in programs.loaded().values()}
        assert loaded == {libbpf.kernel_name(program) for program in programs.loaded()}
        assert "tc_client_ingre" in loaded
        fds = programs._arrays.fds | programs._maps.fds
        needed = {name: fd for name, fd in fds.items() if fd != NO_MAP}
        shown = {name: bpf_info._info(fd, MapInfo()).name.decode() for name, fd in needed.items()}
        assert shown == {name: libbpf.kernel_name(name) for name in needed}
        assert "measured_ports" in shown.values()


class Allocated(ctypes.Structure):
    """struct mallinfo2: how much of malloc()'s memory is in use."""

    uordblks: int
    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
        "fordblks", "keepcost",
    )]  # fmt: skip


def in_use() -> int:
    """Bytes of malloc()'s, in chunks small and large."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = Allocated
    told = mallinfo2()
    return int(told.uordblks + told.hblkhd)


def of_sections() -> list[str]:
    """Where libbpf has mapped memory for sections' values, of objects that it has not closed."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line for line in lines if "/dev/zero" in line]


def test_an_object_is_let_go_of_once_it_is_loaded() -> None:
    """What libbpf has mapped and made of it goes; what nobody closes stays, as is seen first."""
    told, octets = settings(1, (80,)), object_path().read_bytes()
    assert of_sections() == []
    one = BpfObject(octets)
    assert len(of_sections()) > 10
    one.close()
    assert of_sections() == []
    with load(Limits(), told) as programs:
        assert of_sections() == []
        built, loads = programs._built, [Load("sweep"), Load("tc_admit")]
        kept = []
        for _ in range(3):
            for fd in built._load(loads).values():
                os.close(fd)
            kept.append(in_use())
        assert of_sections() == []
    assert kept[2] - kept[1] < len(octets) / 10


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

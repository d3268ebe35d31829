# SPDX-License-Identifier: Apache-2.0
"""The kernel passes a hook while its program runs already, and does not run it again: counted."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from otelbpf.kernel import bpf_info, libbpf
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import Mechanism, choose

pytestmark = pytest.mark.guest

# Instructions of a program that calls a helper and returns 0; and the function that it is inside.
CALL_HELPER = bytes([0x85, 0, 0, 0, 7, 0, 0, 0])  # bpf_get_prandom_u32()
HELPER = "bpf_user_rnd_u32"
KPROBE, CLASSIFIER = 2, 3  # enum bpf_prog_type


@contextlib.contextmanager
def helper_caller(kind: int) -> Iterator[int]:
    """A program that does nothing but enter HELPER; gives its descriptor."""
    code = CALL_HELPER + libbpf.RETURN_0
    fd = libbpf.library().bpf_prog_load(kind, b"enter", b"GPL", code, len(code) // 8, None)
    assert fd >= 0, os.strerror(-fd)
    try:
        yield fd
    finally:
        os.close(fd)


def enter_helper(times: int) -> None:
    with helper_caller(CLASSIFIER) as fd:
        for _ in range(times):
            libbpf.run_once(fd, data=bytes(64))


@pytest.fixture
def btf() -> Iterator[Btf]:
    with Btf.of_kernel() as btf:
        yield btf


def test_what_a_function_entry_missed_is_counted(btf: Btf) -> None:
    """The program enters the function that it is attached to, and is not run for that."""
    for choice in choose(btf):
        for verdict in choice.verdicts:
            if verdict.candidate.mechanism is Mechanism.FENTRY and "fentry" in verdict.reason:
                pytest.skip(verdict.reason)
    fd = libbpf.load_program(
        "miss", CALL_HELPER + libbpf.RETURN_0, libbpf.BPF_PROG_TYPE_TRACING,
        libbpf.BPF_TRACE_FENTRY, btf.function_id(HELPER),
    )  # fmt: skip
    try:
        link = libbpf.attach_tracing(fd)
        enter_helper(23)
        os.close(link)
        assert bpf_info.program_info(fd).missed == 23
    finally:
        os.close(fd)


def test_what_a_kprobe_missed_is_counted(btf: Btf) -> None:
    if not libbpf.KPROBE_EVENTS.exists():
        pytest.skip("this kernel has no kprobes (CONFIG_KPROBE_EVENTS)")
    counted = btf.offset_of("bpf_link_info", "perf_event.kprobe.missed") is not None
    with helper_caller(KPROBE) as fd:
        link, event = libbpf.attach_kprobe(HELPER, fd)
        enter_helper(23)
        missed = bpf_info.kprobe_missed(link)
        os.close(link)
        os.close(event)
    assert missed == (23 if counted else 0)

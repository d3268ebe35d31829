# SPDX-License-Identifier: Apache-2.0
"""What is taken for libbpf has all the functions that are called."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import pytest

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.libbpf_functions import FUNCTIONS, functions_of


def test_nothing_else_can_be_called() -> None:
    assert vars(libbpf.library()).keys() == FUNCTIONS.keys()


def test_another_library_in_its_place(tmp_path: Path) -> None:
    """It is told by the path where the linker has found it."""
    with Path("/proc/self/maps").open() as lines:
        (libm,) = {line.split()[-1] for line in lines if "/libm.so" in line}
    other = tmp_path / "libbpf.so.1"
    shutil.copy(libm, other)
    with pytest.raises(KernelError) as refusal:
        functions_of(str(other))
    assert refusal.value.what == (
        f"what the linker finds as {other} is {other}, which is no libbpf that otelbpf can use, "
        f"as it has no libbpf_set_print() and {len(FUNCTIONS) - 1} others"
    )
    assert "LD_LIBRARY_PATH" in refusal.value.remedy


def test_one_that_lacks_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FUNCTIONS, "bpf_of_tomorrow", (ctypes.c_int,))
    with pytest.raises(KernelError) as refusal:
        functions_of("libbpf.so.1")
    assert refusal.value.what.startswith("what the linker finds as libbpf.so.1 is /")
    assert refusal.value.what.endswith(", as it has no bpf_of_tomorrow()")

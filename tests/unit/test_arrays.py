# SPDX-License-Identifier: Apache-2.0
"""Arrays, where the kernel has no memory for them."""

from __future__ import annotations

import errno
import os

import pytest

from otelbpf.errors import KernelError
from otelbpf.kernel import libbpf
from otelbpf.kernel.arrays import Arrays
from otelbpf.kernel.limits import MOST

VERIFIERS_LIMIT = 1 << 29  # BPF_MAX_VAR_OFF, linux/bpf_verifier.h


def test_one_that_cannot_be_made_is_named_and_the_others_are_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = []

    def create_value(name: str, size: int) -> int:
        if name == "exchanges":
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        made.append(os.memfd_create(name))
        return made[-1]

    monkeypatch.setattr(libbpf, "create_value", create_value)
    with pytest.raises(
        KernelError, match=r"no map of 278 MiB for exchanges \(Cannot .* memory\).*--connections"
    ):
        Arrays(MOST)
    assert made
    for fd in made:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_the_longest_are_as_long_as_the_verifier_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {}

    def create_value(name: str, size: int) -> int:
        sizes[name] = size
        return os.memfd_create(name)

    monkeypatch.setattr(libbpf, "create_value", create_value)
    Arrays(MOST).close()
    assert {name for name, size in sizes.items() if size >= VERIFIERS_LIMIT} == set()
    assert sizes["exchanges"] == 327_680 * 888

# SPDX-License-Identifier: Apache-2.0
"""All loaded programs by their numbers, for an agent that has given up the right to ask."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from otelbpf.kernel import libbpf
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.records import LISTED_PROGRAM

_PIECE = 1 << 16


@dataclass(frozen=True)
class Listed:
    """A loaded program.

    Attributes:
        name: what the kernel keeps of it, libbpf.kernel_name().
        is_ours: has an agent of otelbpf loaded it?
    """

    name: str
    is_ours: bool


class Roster:
    """The list of them. It takes rights to make it, and none to read it.

    Raises:
        KernelError, OSError: the kernel refused.
    """

    def __init__(self, programs: Programs) -> None:
        self._link = libbpf.attach_iterator(programs.roster_fd())

    def read(self) -> dict[int, Listed]:
        """Those that are loaded now, by the kernel's numbers for them.

        Raises:
            OSError: the kernel's refusal.
        """
        iterator = libbpf.create_iterator(self._link)
        with os.fdopen(iterator, "rb", buffering=_PIECE) as file:
            listed = np.frombuffer(file.read(), LISTED_PROGRAM)
        return {
            int(each["id"]): Listed(
                bytes(each["name"]).partition(b"\0")[0].decode(errors="replace"),
                bool(each["is_ours"]),
            )
            for each in listed
        }

    def close(self) -> None:
        """Gives it back."""
        os.close(self._link)

# SPDX-License-Identifier: Apache-2.0
"""What a packet meets at traffic control, in one direction of an interface, in its order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stranger:
    """A program or a filter of somebody else's.

    Attributes:
        key: no other one of this line ever has it.
        name: for people.
    """

    key: int | str
    name: str

    def __str__(self) -> str:
        return self.name


class Line(Protocol):
    """Our programs there. All but is_alive() and close() is to be called in its namespace.

    Attributes:
        can_move: can it go in front of others?
    """

    can_move: bool

    def strangers(self) -> list[Stranger] | None:
        """What packets meet before one of ours; None: ours are not all there.

        Raises:
            OSError: the kernel's refusal, as where the interface is gone.
        """

    def go_first(self) -> None:
        """Goes in front of all others.

        Raises:
            OSError: the kernel's refusal.
        """

    def is_alive(self) -> bool:
        """Has the interface still all of ours, as far as that can be told from anywhere?"""

    def close(self) -> None:
        """Takes ours off."""

# SPDX-License-Identifier: Apache-2.0
"""What came of sending a message, a verdict and a reason for people; and the doors that tell it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol, TypeVar

#: Of what a receiver says, so much is told.
_MOST_WORDS = 300

Payload_contra = TypeVar("Payload_contra", contravariant=True)


class Verdict(StrEnum):
    """What the other side made of a message."""

    TAKEN = "taken"
    LATER = "later"  # a passing failure: the same again
    TOO_LARGE = "too_large"  # smaller ones may be taken
    REFUSED = "refused"  # for good


@dataclass(frozen=True)
class Answer:
    """What came of one try.

    Attributes:
        reason: for people; empty if there is nothing to say.
        rejected: how many spans or data points of a message that was taken are lost nevertheless.
        after_s: how long to wait, by the other side's word; None: it said nothing.
    """

    verdict: Verdict
    reason: str = ""
    rejected: int = 0
    after_s: float | None = None


class Door(Protocol[Payload_contra]):
    """A way for one message at a time."""

    def send(self, payload: Payload_contra, within_s: float) -> Answer:
        """Sends it once.

        Args:
            within_s: the longest to wait for an answer, where the door's own time-out is longer.
        """

    def close(self) -> None:
        """Ends what is under way, where that can be ended; nothing can be sent any more."""


def of_error(error: Exception) -> Answer:
    """The answer where there was none: nobody listens, TLS failed, a time-out, no HTTP …"""
    # What cannot be asked at all, such as a header with a line end, will not be another time.
    verdict = Verdict.REFUSED if isinstance(error, ValueError) else Verdict.LATER
    return Answer(verdict, in_words(error))


def in_words(error: Exception) -> str:
    """An error's name and words, and of what it comes from the innermost's.

    Not its repr(): that of some quotes what they are about, which may be somebody's request.
    """
    inner: BaseException = error
    while (deeper := inner.__cause__ or inner.__context__) is not None:
        inner = deeper
    names = dict.fromkeys((type(error).__name__, type(inner).__name__))
    return ": ".join((*names, words(str(inner)) or "it does not say why"))


def words(text: str) -> str:
    """What others wrote, as one line that can be printed, and no long one."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= _MOST_WORDS else line[:_MOST_WORDS] + "…"

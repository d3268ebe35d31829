# SPDX-License-Identifier: Apache-2.0
"""Until a batch is taken or given up: tries, waits and parts, with a reason for each loss.

Knows of no protocol: a door says what came of each try.
"""

from __future__ import annotations

import logging
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, Self, TypeVar

from otelbpf.export.answers import Answer, Door, Verdict, in_words
from otelbpf.ledger.tally import Lost

_log = logging.getLogger(__name__)

#: How long stopping may wait for a collector without a word.
UNSAID_S = 0.5

_BACK_OFF_FIRST_S = 1.0
_BACK_OFF_LONGEST_S = 8.0
_JITTER = 0.2
#: Between two tries once stopping has begun: there is little time left.
_BACK_OFF_AT_STOP_S = 0.5
# What a collector may ask for: no less, it would be a load; no more, it would be forgotten.
_ASKED_LEAST_S = 0.1
_ASKED_LONGEST_S = 300.0
#: The same thing is not told again before this has passed, though it went well in between.
QUIET_S = 60.0
# Things that differ in more than numbers: a receiver that says another each time is not repeated.
_MOST_TOLD = 8


class Parted(Protocol):
    """Units that can be counted and parted: a sequence, or what is one in columns."""

    def __len__(self) -> int: ...
    def __getitem__(self, part: slice, /) -> Self: ...


Units = TypeVar("Units", bound=Parted)


class Formed(NamedTuple):
    """What some units become.

    Attributes:
        payload: for the door.
        items: tells how many spans or data points each unit is.
    """

    payload: Any
    items: Callable[[], Sequence[int]]


@dataclass(frozen=True)
class Fate:
    """What became of some units of a batch.

    Attributes:
        taken: units of which all has arrived.
        lost: units of which something has not, by the reason.
    """

    taken: int
    lost: dict[Lost, int] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """How many there were."""
        return self.taken + sum(self.lost.values())


@dataclass(frozen=True)
class Wording:
    """How it is told.

    Attributes:
        whose: who takes or refuses.
        what: is taken, in the plural.
        items: what is counted of it, in the plural.
        one: the least that is sent alone.
        meanwhile: what becomes of what is not taken now.
        refused: what becomes of what is refused for good.
    """

    whose: str
    what: str
    items: str
    one: str
    meanwhile: str
    refused: str = "what is refused is counted as lost"


class Delivery(Generic[Units]):
    """Hands batches to a door. For one thread, but for stop().

    Args:
        form: makes some units a payload; asked again for parts of a batch.
        retry_s: for how long a batch that is not taken is tried again.
        most: so many units go at once; None: all of a batch.
    """

    def __init__(
        self,
        door: Door[Any],
        form: Callable[[Units], Formed],
        wording: Wording,
        retry_s: float,
        most: int | None = None,
    ) -> None:
        self._door = door
        self._form = form
        self._wording = wording
        self._retry_s = retry_s
        self._most = most
        self._news = _News()
        # Of what is our own doing, and is not over when the door takes something.
        self._faults = _News()
        # How many units fitted when a batch was last found too large, which holds for a while.
        self._fitting: int | None = None
        self._fitting_until = 0.0
        self._next_try_at = 0.0
        self._is_cut_short_at_stop = False
        self._stop_at = float("inf")
        self._stopping = threading.Event()

    def stop(self, within_s: float) -> None:
        """From any thread: cuts waiting short; nothing is tried after `within_s`."""
        self._stop_at = time.monotonic() + within_s
        self._stopping.set()

    def deliver(self, units: Units, formed: Future[Formed] | None = None) -> Iterator[Fate]:
        """Sends a batch; yields what became of each part of it as soon as that is known.

        Args:
            formed: what all of it becomes, where somebody has begun to form it.
        """
        give_up_at: float | None = None
        most = self._most_at_once(len(units))
        largest_taken, is_too_large = 0, False
        # Of what was too large and more than one unit: as large a part need not be sent to know.
        least_too_large = float("inf")
        parts = [units[first : first + most] for first in range(0, len(units), most)][::-1]
        while parts:
            part = parts.pop()
            if not self._wait():
                yield Fate(0, {Lost.EXPORT_FAILED: len(part)})
                continue
            give_up_at = give_up_at or time.monotonic() + self._retry_s
            ahead = formed if len(part) == len(units) else None
            made = self._formed(part, ahead)
            size = _size(made)
            answer = (
                Answer(Verdict.TOO_LARGE)
                if made is None or (len(part) > 1 and size >= least_too_large)
                else self._until_decided(made.payload, give_up_at)
            )
            if answer.verdict is Verdict.TOO_LARGE and len(part) > 1:
                is_too_large = True
                least_too_large = min(least_too_large, size or float("inf"))
                middle = len(part) // 2
                parts += [part[middle:], part[:middle]]
                continue
            if answer.verdict is Verdict.TAKEN:
                largest_taken = max(largest_taken, len(part))
            yield self._fate(part, made, answer)
        if is_too_large:
            # Else each batch would be sent in vain before it is parted.
            self._fitting = max(1, largest_taken)
            self._fitting_until = time.monotonic() + QUIET_S

    def goes_whole(self, count: int) -> bool:
        """Is a batch of so many units not parted, as far as is known?"""
        return self._most_at_once(count) == count

    def _most_at_once(self, count: int) -> int:
        if time.monotonic() >= self._fitting_until:
            self._fitting = None
        return min(filter(None, (self._most, self._fitting, count)), default=1)

    def _formed(self, part: Units, ahead: Future[Formed] | None) -> Formed | None:
        """None: something in there has no form; its batch is parted until that is alone."""
        try:
            return self._form(part) if ahead is None else ahead.result()
        except Exception as error:
            if len(part) == 1:
                self._faults.bad(
                    f"{self._wording.what} cannot be made of something "
                    f"({in_words(error)}): it is lost",
                    exc_info=True,
                )
            return None

    def _fate(self, part: Units, formed: Formed | None, answer: Answer) -> Fate:
        wording = self._wording
        match answer.verdict:
            case _ if formed is None:
                return Fate(0, {Lost.EXPORT_FAILED: len(part)})
            case Verdict.TAKEN if answer.rejected:
                self._news.bad(
                    f"{wording.whose} has rejected {answer.rejected} of {sum(formed.items())} "
                    f"{wording.items}, which are lost ({answer.reason or 'it does not say why'})"
                )
                rejected = _fewest(formed.items(), answer.rejected)
                return Fate(len(part) - rejected, {Lost.REJECTED: rejected})
            case Verdict.TAKEN:
                if answer.reason:
                    self._news.remark(
                        f"{wording.whose} has taken {wording.what} and says: {answer.reason}"
                    )
                self._news.good(f"{wording.whose} takes {wording.what} again")
                return Fate(len(part))
            case Verdict.LATER:
                return Fate(0, {Lost.EXPORT_FAILED: len(part)})
            case Verdict.TOO_LARGE:
                self._news.bad(
                    f"{wording.whose} finds even {wording.one} too large ({answer.reason}); "
                    f"{wording.refused}"
                )
                return Fate(0, {Lost.TOO_LARGE: len(part)})
        self._news.bad(
            f"{wording.whose} refuses {wording.what} ({answer.reason}); {wording.refused}"
        )
        return Fate(0, {Lost.REFUSED: len(part)})

    def _until_decided(self, payload: Any, give_up_at: float) -> Answer:
        """Tries until there is an answer that is none for now, or no time left."""
        back_off_s = _BACK_OFF_FIRST_S
        while True:
            answer = self._try(payload)
            if answer.verdict is not Verdict.LATER:
                return answer
            self._news.bad(
                f"{self._wording.whose} does not take {self._wording.what} now ({answer.reason}); "
                f"{self._wording.meanwhile}"
            )
            now = time.monotonic()
            self._is_cut_short_at_stop = False
            if answer.after_s:
                # It holds for the next batch, too.
                wait_s = min(max(answer.after_s, _ASKED_LEAST_S), _ASKED_LONGEST_S)
                is_over = now >= give_up_at
            elif self._stopping.is_set():
                wait_s, is_over = _BACK_OFF_AT_STOP_S, False
            else:
                wait_s = back_off_s * random.uniform(1 - _JITTER, 1 + _JITTER)
                back_off_s = min(back_off_s * 2, _BACK_OFF_LONGEST_S)
                is_over = now + wait_s > give_up_at
                wait_s = 0.0 if is_over else wait_s
                self._is_cut_short_at_stop = True
            self._next_try_at = now + wait_s
            if is_over or not self._wait():
                return answer

    def _try(self, payload: Any) -> Answer:
        try:
            return self._door.send(payload, self._stop_at - time.monotonic())
        except Exception as error:
            self._news.bad(f"the exporter failed ({in_words(error)})", exc_info=True)
            return Answer(Verdict.LATER, in_words(error))

    def _wait(self) -> bool:
        """Waits until the next try is due; False: there shall be none, the time is up."""
        if not self._stopping.wait(max(0.0, self._next_try_at - time.monotonic())):
            return True
        now = time.monotonic()
        due = now if self._is_cut_short_at_stop else max(now, self._next_try_at)
        if due >= self._stop_at:
            return False
        time.sleep(due - now)
        return True


class _News:
    """Tells each thing once, as long as it is so; and that it is over."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._told_at: dict[str, float] = {}
        self._remarks: set[str] = set()

    def bad(self, sentence: str, *, exc_info: bool = False) -> None:
        """Something is lost or has to wait."""
        key, now = _without_numbers(sentence), time.monotonic()
        self._told_at = {k: at for k, at in self._told_at.items() if now - at < QUIET_S}
        if key in self._told or key in self._told_at or len(self._told) >= _MOST_TOLD:
            return
        self._told.add(key)
        self._told_at[key] = now
        _log.warning("%s", sentence, exc_info=exc_info)

    def good(self, sentence: str) -> None:
        """All is taken."""
        if self._told:
            _log.warning("%s", sentence)
        self._told.clear()

    def remark(self, sentence: str) -> None:
        """Something that costs nothing."""
        key = _without_numbers(sentence)
        if key not in self._remarks and len(self._remarks) < _MOST_TOLD:
            self._remarks.add(key)
            _log.warning("%s", sentence)


def _size(formed: Formed | None) -> int:
    """0: it is not known, as that of what an exporter makes bytes of by itself."""
    payload = formed.payload if formed is not None else None
    return len(payload) if isinstance(payload, (bytes, str)) else 0


def _without_numbers(sentence: str) -> str:
    return re.sub(r"\d+", "", sentence)


def _fewest(items: Sequence[int], rejected: int) -> int:
    """How many units the rejected items can have been at the least: nobody says which they were."""
    left = rejected
    for count, size in enumerate(sorted(items, reverse=True)):
        if left <= 0:
            return count
        left -= size
    return len(items)

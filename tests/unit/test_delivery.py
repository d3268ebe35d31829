# SPDX-License-Identifier: Apache-2.0
"""What is tried again and when, what is parted, what is lost and why, and what is told of it."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import pytest
from hours import Hours, passing

from otelbpf.export.answers import Answer, Verdict
from otelbpf.export.delivery import Delivery, Fate, Formed, Wording
from otelbpf.ledger.tally import Lost

TAKEN, LATER, TOO_LARGE, REFUSED = (Answer(verdict, "why") for verdict in Verdict)
WELL = Answer(Verdict.TAKEN)
WORDING = Wording("the collector", "spans", "spans", "a single one", "they wait", "they are lost")
NOW_TO_LATER = "the collector does not take spans now (why); they wait"
AGAIN = "the collector takes spans again"


@pytest.fixture(autouse=True)
def hours(monkeypatch: pytest.MonkeyPatch) -> Hours:
    return passing(monkeypatch)


class Door:
    """Answers as it is told, then well; units are letters, and a payload is a text."""

    def __init__(self, *answers: Answer | Exception, most: int = 1_000) -> None:
        self.answers: list[Answer | Exception] = list(answers)
        self.most = most
        self.sent: list[str] = []
        self.within_s: list[float] = []

    def send(self, payload: str, within_s: float) -> Answer:
        self.sent.append(payload)
        self.within_s.append(within_s)
        if len(payload) > self.most:
            return TOO_LARGE
        answer = self.answers.pop(0) if self.answers else WELL
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None:
        """Nothing to do."""


def form(units: Sequence[str]) -> Formed:
    """Each letter is as many items as its place in the alphabet; a capital one is long."""
    if "!" in units:
        raise ValueError("no form for that")
    payload = "".join(unit * (20 if unit.isupper() else 1) for unit in units)
    return Formed(payload, lambda: [ord(unit) - ord("a") + 1 for unit in units])


def made(door: Door, retry_s: float = 60.0, most: int | None = None) -> Delivery[str]:
    return Delivery(door, form, WORDING, retry_s, most)


def deliver(door: Door, units: str, **others: float) -> list[Fate]:
    return list(made(door, **others).deliver(units))  # type: ignore[arg-type]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def total(fates: Sequence[Fate]) -> dict[str, int]:
    sums: dict[str, int] = {"taken": sum(fate.taken for fate in fates)}
    for fate in fates:
        for reason, count in fate.lost.items():
            sums[reason] = sums.get(reason, 0) + count
    return sums


def test_all_is_well(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    assert deliver(door, "abc") == [Fate(3)]
    assert (door.sent, told(caplog)) == (["abc"], [])
    assert deliver(door, "") == []
    assert door.sent == ["abc"]


# --- again --------------------------------------------------------------------------------------


def test_a_passing_failure_is_tried_again_until_the_time_is_up(
    hours: Hours, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(*[LATER] * 10)
    assert deliver(door, "ab") == [Fate(0, {Lost.EXPORT_FAILED: 2})]
    # 8 s more would be past the minute.
    assert hours.waits == [1, 2, 4, 8, 8, 8, 8, 8, 8]
    assert door.sent == ["ab"] * 10
    assert told(caplog) == [NOW_TO_LATER]


def test_the_batch_after_one_that_was_given_up_is_tried_at_once(hours: Hours) -> None:
    door = Door(*[LATER] * 10)
    sender = made(door)
    list(sender.deliver("a"))
    given_up_at = hours.now
    assert list(sender.deliver("b")) == [Fate(1)]
    assert hours.now == given_up_at


def test_pauses_are_no_two_the_same(hours: Hours, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that agents that failed together do not come again together."""
    asked: list[tuple[float, float]] = []

    def uniform(first: float, last: float) -> float:
        asked.append((first, last))
        return last

    monkeypatch.setattr(random, "uniform", uniform)
    deliver(Door(LATER, LATER), "a")
    assert hours.waits == [1.2, 2.4]
    assert asked == [(0.8, 1.2)] * 2


def test_it_is_told_once_and_that_it_is_over(
    hours: Hours, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(*[LATER] * 6)
    assert deliver(door, "abc") == [Fate(3)]
    assert hours.waits == [1, 2, 4, 8, 8, 8]
    assert told(caplog) == [NOW_TO_LATER, AGAIN]


def test_a_window_that_is_shorter_than_a_pause_is_one_try(hours: Hours) -> None:
    door = Door(LATER)
    assert deliver(door, "a", retry_s=0.5) == [Fate(0, {Lost.EXPORT_FAILED: 1})]
    assert (door.sent, hours.waits) == (["a"], [])


@pytest.mark.parametrize(
    ("asked_s", "waited_s"), [(7.5, 7.5), (0.05, 0.1), (240, 240), (300, 300), (86_400, 300)]
)
def test_what_the_collector_asks_for_is_kept(hours: Hours, asked_s: float, waited_s: float) -> None:
    """Beyond the minute, too, but not for ever."""
    door = Door(Answer(Verdict.LATER, "busy", after_s=asked_s))
    assert deliver(door, "a") == [Fate(1)]
    assert hours.waits == [waited_s]


def test_nothing_asked_for_is_no_wish_to_be_asked_without_pause(hours: Hours) -> None:
    assert deliver(Door(*[Answer(Verdict.LATER, "busy", after_s=0.0)] * 2), "a") == [Fate(1)]
    assert hours.waits == [1, 2]


def test_one_that_always_asks_for_time_is_given_up_after_the_minute_and_the_next_batch_waits(
    hours: Hours,
) -> None:
    door = Door(*[Answer(Verdict.LATER, "busy", after_s=25)] * 4)
    sender = made(door)
    assert list(sender.deliver("a")) == [Fate(0, {Lost.EXPORT_FAILED: 1})]
    assert hours.waits == [25, 25, 25]
    assert list(sender.deliver("b")) == [Fate(1)]
    assert hours.waits == [25] * 4
    assert door.sent == ["a"] * 4 + ["b"]


def test_a_batch_that_has_to_wait_for_its_first_try_has_its_minute_after_that(hours: Hours) -> None:
    busy = [Answer(Verdict.LATER, "busy", after_s=seconds) for seconds in (200, 100)]
    door = Door(*busy, LATER, LATER)
    sender = made(door)
    assert list(sender.deliver("a")) == [Fate(0, {Lost.EXPORT_FAILED: 1})]
    assert list(sender.deliver("b")) == [Fate(1)]
    assert hours.waits == [200, 100, 1, 2]
    assert door.sent == ["a", "a", "b", "b", "b"]


# --- for good -----------------------------------------------------------------------------------


def test_a_refusal_is_final_and_told_once(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(*[REFUSED] * 3)
    sender = made(door)
    for _ in range(3):
        assert list(sender.deliver("ab")) == [Fate(0, {Lost.REFUSED: 2})]
    assert list(sender.deliver("ab")) == [Fate(2)]
    assert (door.sent, hours.waits) == (["ab"] * 4, [])
    assert told(caplog) == ["the collector refuses spans (why); they are lost", AGAIN]


def test_another_reason_is_told_too_but_not_another_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = [
        Answer(Verdict.REFUSED, reason)
        for reason in ("no token", "request 17: quota", "request 18: quota", "no token")
    ]
    deliver_each = made(Door(*answers))
    for _ in answers:
        list(deliver_each.deliver("a"))
    assert told(caplog) == [
        f"the collector refuses spans ({reason}); they are lost"
        for reason in ("no token", "request 17: quota")
    ]


def test_one_that_says_something_else_each_time_does_not_fill_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    words = ("".join(letters) for letters in itertools.product("abcdefgh", repeat=2))
    sender = made(Door(*[Answer(Verdict.REFUSED, each) for each in words]))
    for _ in range(60):
        list(sender.deliver("a"))
    assert len(told(caplog)) == 8


def test_one_that_comes_and_goes_is_told_of_once_a_minute(
    hours: Hours, caplog: pytest.LogCaptureFixture
) -> None:
    sender = made(Door(*[REFUSED, WELL] * 100))
    for _ in range(200):  # one a second
        list(sender.deliver("a"))
        hours.now += 1
    assert told(caplog) == ["the collector refuses spans (why); they are lost", AGAIN] * 4


# --- too large ----------------------------------------------------------------------------------


@pytest.mark.parametrize("most", range(1, 24))
def test_what_is_too_large_is_parted_until_it_is_taken(
    most: int, caplog: pytest.LogCaptureFixture
) -> None:
    units = "".join(chr(ord("a") + n % 26) for n in range(23))
    door = Door(most=most)
    fates = deliver(door, units)
    assert total(fates) == {"taken": 23}
    assert "".join(sent for sent in door.sent if len(sent) <= most) == units
    assert told(caplog) == []


def test_one_that_is_too_large_alone_is_lost_and_no_other(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(most=10)
    fates = deliver(door, "abcDefg")
    assert total(fates) == {"taken": 6, Lost.TOO_LARGE: 1}
    assert told(caplog) == [
        "the collector finds even a single one too large (why); they are lost",
        AGAIN,
    ]


def test_the_next_batch_goes_at_once_as_it_fitted(hours: Hours) -> None:
    door = Door(most=3)
    sender = made(door)
    list(sender.deliver("abcdefgh"))
    assert door.sent == ["abcdefgh", "abcd", "ab", "cd", "ef", "gh"]
    door.sent.clear()
    list(sender.deliver("abcdefgh"))
    assert door.sent == ["ab", "cd", "ef", "gh"]
    # It may have been the one batch: after a while a whole one is tried again.
    hours.now += 60
    door.most, door.sent = 8, []
    list(sender.deliver("abcdefgh"))
    assert door.sent == ["abcdefgh"]


def test_where_nothing_fits_each_is_sent_once() -> None:
    """And no part that is as large as another one that did not fit."""
    door = Door(most=0)
    sender = made(door)
    assert total(list(sender.deliver("abcdefgh"))) == {"taken": 0, Lost.TOO_LARGE: 8}
    assert door.sent == ["abcdefgh", "abcd", "ab", *"abcdefgh"]
    door.sent.clear()
    assert total(list(sender.deliver("abcd"))) == {"taken": 0, Lost.TOO_LARGE: 4}
    assert door.sent == ["a", "b", "c", "d"]


def test_one_that_is_too_large_alone_does_not_part_all_that_follow() -> None:
    door = Door(most=10)
    sender = made(door)
    list(sender.deliver("abcDefgh"))
    door.sent.clear()
    list(sender.deliver("abcefghi"))
    assert door.sent == ["abce", "fghi"]


def test_parts_have_fates_of_their_own(caplog: pytest.LogCaptureFixture) -> None:
    door = Door(TOO_LARGE, WELL, REFUSED)
    assert deliver(door, "abcde") == [Fate(2), Fate(0, {Lost.REFUSED: 3})]
    assert door.sent == ["abcde", "ab", "cde"]


def test_so_many_at_once() -> None:
    door = Door()
    assert total(list(made(door, most=3).deliver("abcdefg"))) == {"taken": 7}
    assert door.sent == ["abc", "def", "g"]


# --- in part ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rejected", "lost"),
    # Of 1, 2, 3 and 4 items: as few units as they can have been.
    [(1, 1), (4, 1), (5, 2), (7, 2), (8, 3), (9, 3), (10, 4), (11, 4), (10**9, 4)],
)
def test_what_is_rejected_of_what_is_taken_is_lost(
    rejected: int, lost: int, caplog: pytest.LogCaptureFixture
) -> None:
    door = Door(Answer(Verdict.TAKEN, "too old", rejected))
    assert deliver(door, "cabd") == [Fate(4 - lost, {Lost.REJECTED: lost})]
    assert door.sent == ["cabd"]
    assert told(caplog) == [
        f"the collector has rejected {rejected} of 10 spans, which are lost (too old)"
    ]


def test_rejections_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sender = made(Door(*[Answer(Verdict.TAKEN, "", n) for n in (3, 2, 1)]))
    for _ in range(4):
        list(sender.deliver("c"))
    assert told(caplog) == [
        "the collector has rejected 3 of 3 spans, which are lost (it does not say why)",
        AGAIN,
    ]


def test_a_remark_costs_nothing_and_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sender = made(Door(*[TAKEN] * 5))
    for _ in range(5):
        assert list(sender.deliver("abc")) == [Fate(3)]
    assert told(caplog) == ["the collector has taken spans and says: why"]


# --- what goes wrong here ------------------------------------------------------------------------


def test_what_has_no_form_is_lost_alone(caplog: pytest.LogCaptureFixture) -> None:
    door = Door()
    assert total(deliver(door, "abc!efg!")) == {"taken": 6, Lost.EXPORT_FAILED: 2}
    assert sorted("".join(door.sent)) == list("abcefg")
    (record,) = caplog.records  # the door has not refused any, so it takes none again
    assert record.getMessage() == (
        "spans cannot be made of something (ValueError: no form for that): it is lost"
    )
    assert record.exc_info is not None


def test_a_door_that_raises_is_tried_again(hours: Hours, caplog: pytest.LogCaptureFixture) -> None:
    door = Door(RuntimeError("a bug"), RuntimeError("a bug"))
    assert deliver(door, "abc") == [Fate(3)]
    assert hours.waits == [1, 2]
    assert [bool(record.exc_info) for record in caplog.records] == [True, False, False]


# --- stopping -----------------------------------------------------------------------------------


def test_a_stop_cuts_a_pause_short(hours: Hours) -> None:
    door = Door(*[LATER] * 4)
    sender = made(door)
    hours.stop_in, hours.stop = 3.0, lambda: sender.stop(within_s=10)
    assert list(sender.deliver("a")) == [Fate(1)]
    assert hours.waits == [1, 2, 3.0, 0.5]  # instead of 4; and there is little time left
    assert door.within_s[-1] == 9.5


def test_no_try_ends_after_the_stop(hours: Hours) -> None:
    door = Door(*[LATER] * 100)
    sender = made(door)
    sender.stop(within_s=1.2)
    assert list(sender.deliver("ab")) == [Fate(0, {Lost.EXPORT_FAILED: 2})]
    assert hours.waits == [0.5, 0.5]
    assert door.within_s == pytest.approx([1.2, 0.7, 0.2])


def test_what_is_left_when_the_time_is_up_is_not_even_formed(hours: Hours) -> None:
    door = Door()
    sender = made(door, most=1)
    sender.stop(within_s=0)
    assert total(list(sender.deliver("abc"))) == {"taken": 0, Lost.EXPORT_FAILED: 3}
    assert door.sent == []


@pytest.mark.parametrize(("asked_s", "fate"), [
    (4.0, Fate(1)), (11.0, Fate(0, {Lost.EXPORT_FAILED: 1})),
])  # fmt: skip
def test_what_the_collector_asks_for_is_kept_at_the_stop(
    hours: Hours, asked_s: float, fate: Fate
) -> None:
    """Where there is no time for it nothing is tried, and nothing waited for in vain."""
    door = Door(Answer(Verdict.LATER, "busy", after_s=asked_s))
    sender = made(door)
    sender.stop(within_s=10)
    assert list(sender.deliver("a")) == [fate]
    assert hours.waits == ([asked_s] if fate.taken else [])

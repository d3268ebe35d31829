# SPDX-License-Identifier: Apache-2.0
"""What the programs make of bytes on the wire: the same that parsers do which others wrote.

The programs are the real ones, built for this machine with sanitizers. Those who judge are h11,
llhttp and, where these two differ, RFC 9112: verdicts.py says how.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import odd_messages
import pytest
import rfc9112
from conversations import Conversation, Turn
from drawn_messages import conversations, spoiled_conversations
from host_programs import HostPrograms, build
from hypothesis import HealthCheck, given, settings
from odd_messages import Odd
from verdicts import FORGIVING, Expected, check

pytestmark = pytest.mark.impure  # gcc

# Each is played three times. The same ones each time: what CI finds is found again here.
_DRAWN = settings(
    max_examples=500,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

#: What is not read right yet, by what is wrong.
UNMENDED: dict[str, tuple[str, ...]] = {
    "a length that is a list": (
        "a request's length over and over",
        "a response's length over and over",
    ),
    "a folded value is read without what is folded": (
        "a request's length with more folded behind it",
        "a response's length with more folded behind it",
    ),
    "that a chunk's content ends with CRLF is not looked at: it would have to be loaded": (
        "a chunk of a request that goes on behind its end",
        "a chunk of a response that goes on behind its end",
    ),
    "a method begins with a capital letter": (
        "a method in small letters",
        "a method that begins with a digit",
        "a method that begins with a mark",
    ),
    "of a long first line the version and the length are guessed": (
        "a target of 300 bytes",
        "a target of 3000 bytes",
        "300 bytes and no version",
    ),
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    programs = HostPrograms(build(tmp_path_factory.mktemp("host")))
    yield programs
    programs.close()


@_DRAWN
@given(talk=conversations())
def test_what_is_well_said_is_seen_in_any_segments(
    programs: HostPrograms, talk: Conversation
) -> None:
    expected = Expected.of(talk)
    assert expected.all_is_certain, "it is not well said"
    for form in (talk, talk.whole(), talk.byte_by_byte()):
        check(form, expected, programs.play(form))


@_DRAWN
@given(talk=spoiled_conversations())
def test_of_what_is_not_no_more_is_said_than_the_bytes_bear(
    programs: HostPrograms, talk: Conversation
) -> None:
    expected = Expected.of(talk, FORGIVING)
    for form in (talk, talk.whole(), talk.byte_by_byte()):
        check(form, expected, programs.play(form))


def _marked(odd: Odd) -> object:
    reasons = [why for why, names in UNMENDED.items() if odd.name in names]
    marks = [pytest.mark.xfail(reason=why, raises=AssertionError) for why in reasons]
    return pytest.param(odd, id=odd.name, marks=marks)


def _forms(talk: Conversation) -> Iterator[Conversation]:
    for form in (talk, talk.byte_by_byte()):
        yield form
        yield replace(form, of_client=True)
    for by_client in (True, False):
        length = len(talk.said(by_client=by_client))
        for place in range(1, length, 1 + length // 200):
            yield talk.cut_at(place, by_client=by_client)


@pytest.mark.parametrize("odd", [_marked(odd) for odd in odd_messages.ALL])
def test_what_is_odd_is_read_right_or_not_at_all(programs: HostPrograms, odd: Odd) -> None:
    talk = Conversation((Turn(True, odd.asked), Turn(False, odd.answered)), closed=odd.closed)
    expected = Expected.of(talk, (rfc9112,)) if odd.by_letter else Expected.of(talk)
    for form in _forms(talk):
        check(form, expected, programs.play(form))


def test_unmended_names_are_those_of_odd_messages() -> None:
    names = [name for of_one in UNMENDED.values() for name in of_one]
    assert len(names) == len(set(names))
    assert set(names) <= {odd.name for odd in odd_messages.ALL}

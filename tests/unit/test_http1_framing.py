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
from host_programs import HostPrograms, build, drawn
from hypothesis import given
from odd_messages import Odd
from verdicts import Expected, check

pytestmark = pytest.mark.impure  # gcc

# Each is played three times. The same ones each time: what CI finds is found again here.
_DRAWN = drawn(500)


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
    expected = Expected.of(talk)
    for form in (talk, talk.whole(), talk.byte_by_byte()):
        check(form, expected, programs.play(form))


def _forms(talk: Conversation) -> Iterator[Conversation]:
    for form in (talk, talk.byte_by_byte()):
        yield form
        yield replace(form, of_client=True)
    for by_client in (True, False):
        length = len(talk.said(by_client=by_client))
        for place in range(1, length, 1 + length // 200):
            yield talk.cut_at(place, by_client=by_client)


@pytest.mark.parametrize("odd", [pytest.param(odd, id=odd.name) for odd in odd_messages.ALL])
def test_what_is_odd_is_read_right_or_not_at_all(programs: HostPrograms, odd: Odd) -> None:
    talk = Conversation((Turn(True, odd.asked), Turn(False, odd.answered)), closed=odd.closed)
    expected = Expected.of(talk, (rfc9112,)) if odd.by_letter else Expected.of(talk)
    for form in _forms(talk):
        check(form, expected, programs.play(form))

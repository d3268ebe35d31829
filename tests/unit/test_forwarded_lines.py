# SPDX-License-Identifier: Apache-2.0
"""What is kept of the header in which proxies say for whom they forward, in any segments.

The programs are the real ones, built for this machine with sanitizers.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conversations import Conversation, Turn
from host_programs import HostPrograms, Outcome, build, drawn
from hypothesis import given
from hypothesis import strategies as st

from otelbpf.kernel.records import Counter
from otelbpf.ledger.forwarded import _last_bytes

pytestmark = pytest.mark.impure  # gcc

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
#: Bytes that are kept.
MOST = 256
CUT = b"..."

_DRAWN = drawn(500)


@pytest.fixture(scope="module")
def x_forwarded_for(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    yield from _built(tmp_path_factory, "HEADER_X_FORWARDED_FOR")


@pytest.fixture(scope="module")
def forwarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    yield from _built(tmp_path_factory, "HEADER_FORWARDED")


def _built(factory: pytest.TempPathFactory, header: str) -> Iterator[HostPrograms]:
    programs = HostPrograms(build(factory.mktemp("host"), f"-DFORWARDED_ASKED_FOR={header}"))
    yield programs
    programs.close()


def asked(*lines: bytes) -> bytes:
    return (
        b"GET /one HTTP/1.1\r\nHost: h\r\n" + b"".join(line + b"\r\n" for line in lines) + b"\r\n"
    )


def talk_of(*requests: bytes) -> Conversation:
    turns = [turn for each in requests for turn in (Turn(True, each), Turn(False, OK))]
    return Conversation(tuple(turns), closed=True)


def kept(outcome: Outcome) -> list[bytes | None]:
    """Of each request, what is kept: all of it, or the last bytes of it after an ellipsis."""
    told: list[bytes | None] = []
    for record, text in zip(outcome.records, outcome.forwarded, strict=True):
        is_its = text["connection_id"] == record["connection_id"]
        if not is_its or text["ordinal"] != record["ordinal"]:
            told.append(None)
            continue
        octets, is_cut = _last_bytes(text)
        told.append(CUT + octets if is_cut else octets)
    return told


def words(text: bytes | None) -> bytes | None:
    """Without blanks around each line, of which a folded one may have any number within."""
    if text is None:
        return None
    return b",".join(b" ".join(item.split()) for item in text.split(b","))


def forms_of(talk: Conversation) -> Iterator[Conversation]:
    yield talk
    yield talk.byte_by_byte()
    for at in range(1, len(talk.turns[0].data)):
        yield talk.cut_at(at, by_client=True)


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((), None),
        ((b"X-Forwarded-For: 192.0.2.7",), b"192.0.2.7"),
        ((b"x-fORwarDed-foR:192.0.2.7, ::1  ",), b"192.0.2.7,::1"),
        ((b"X-Forwarded-For: a", b"User-Agent: u", b"X-FORWARDED-FOR: b", b"X-Forwarded-For:c"),
         b"a,b,c"),
        ((b"X-Forwarded-For: a,", b"\tb", b" c", b"X-Forwarded-For: d"), b"a,b c,d"),
        ((b"X-Forwarded-For: a", b"X-Forwarded-For:", b"X-Forwarded-For: b"), b"a,?,b"),
        ((b"X-Forwarded-For: a", b"X-Forwarded-For : b"), b"a,?"),
        ((b"X-Forwarded-For : a", b"X-Forwarded-For: b"), b"?,b"),
        ((b"X-Forwarded-Fo: a", b"X-Forwarded-Form: b", b"X-Forwarded-Host: c"), None),
        ((b"Forwarded: for=a", b"Forwarded-For: b", b"X-Forwarded: c", b"XX-Forwarded-For: d"),
         None),
        ((b"Content-Length: 0", b"X-Forwarded-For: a", b"Content-Length: 0"), b"a"),
    ],
)  # fmt: skip
def test_lines_in_any_two_segments(
    x_forwarded_for: HostPrograms, lines: tuple[bytes, ...], expected: bytes | None
) -> None:
    for form in forms_of(talk_of(asked(*lines), asked())):
        outcome = x_forwarded_for.play(form)
        assert list(map(words, kept(outcome))) == [expected, None]
        assert outcome.lost == 0
        assert outcome.counts[Counter.SEEN] == 2


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ((b"Forwarded: for=a", b"FORWARDED:for=b;by=c"), b"for=a,for=b;by=c"),
        ((b"X-Forwarded-For: a", b"Forwarder: b", b"Forwarde: c", b"Forwarded-For: d"), None),
        ((b'Forwarded: for="\\"a,b"', b" ;by=c"), b'for="\\"a,b" ;by=c'),
    ],
)
def test_the_other_header(
    forwarded: HostPrograms, lines: tuple[bytes, ...], expected: bytes | None
) -> None:
    for form in forms_of(talk_of(asked(*lines))):
        assert list(map(words, kept(forwarded.play(form)))) == [words(expected)]


@pytest.mark.parametrize("length", [*range(MOST - 3, MOST + 5), 100, 511, 512, 700])
@pytest.mark.parametrize("before", [0, 1, 150, MOST, 3 * MOST])
@pytest.mark.parametrize("after", [0, 1, 8])
def test_more_than_there_is_room_for(
    x_forwarded_for: HostPrograms, length: int, before: int, after: int
) -> None:
    values = [b"a" * before, (b"0123456789" * 80)[:length], b"z" * after]
    values = [value for value in values if value]
    lines = [b"X-Forwarded-For:" + value for value in values]
    outcome = x_forwarded_for.play(talk_of(asked(*lines)))
    assert kept(outcome) == [shortened(values)]


def shortened(values: list[bytes]) -> bytes:
    """As they are kept: of one of them no more than so many bytes, and of all."""
    most = MOST - 1
    whole = b",".join(value if len(value) <= most else b"?" + value[-most:] for value in values)
    return whole if len(whole) <= MOST else CUT + whole[-MOST:]


def test_a_line_that_is_too_long_to_be_carried_is_not_known(x_forwarded_for: HostPrograms) -> None:
    value = b" " + b"a" * 400
    first, last = asked(b"X-Forwarded-For:" + value), asked()
    came = set()
    for at in range(40, 400, 7):
        told = kept(x_forwarded_for.play(talk_of(first, last).cut_at(at, by_client=True)))
        assert told[1] is None
        came.add(told[0])
    assert came == {b"?", shortened([value])}
    lines = asked(b"X-Forwarded-For:" + value, b"X-Forwarded-For: b")
    assert kept(x_forwarded_for.play(talk_of(lines).byte_by_byte())) == [b"?, b"]


def test_many_lines(x_forwarded_for: HostPrograms) -> None:
    for count in range(1, 30):
        lines = [b"X-Forwarded-For: %d" % number for number in range(count)]
        outcome = x_forwarded_for.play(talk_of(asked(*lines)))
        expected = b",".join(b" %d" % number for number in range(count))
        assert kept(outcome) == [expected]
        assert outcome.lost == 0


def test_who_comes_next_has_nothing_of_it(x_forwarded_for: HostPrograms) -> None:
    requests = [
        asked(*([b"X-Forwarded-For: %d" % number] if number % 3 else [])) for number in range(9)
    ]
    expected = [b" %d" % number if number % 3 else None for number in range(9)]
    assert kept(x_forwarded_for.play(talk_of(*requests))) == expected
    together = Conversation((Turn(True, b"".join(requests)), Turn(False, OK * 9)), closed=True)
    for form in (together, together.byte_by_byte()):
        assert kept(x_forwarded_for.play(form)) == expected


_LINES = st.lists(
    st.tuples(
        st.sampled_from((b"X-Forwarded-For", b"x-forwarded-for", b"X-Other", b"Content-Type")),
        st.text("0123456789.,:af ", min_size=1, max_size=100).map(str.encode),
    ),
    max_size=5,
)


@_DRAWN
@given(_LINES, st.data())
def test_lines_are_joined_as_others_join_them(
    x_forwarded_for: HostPrograms, lines: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    head = asked(*(name + b":" + value for name, value in lines))
    values = [value for name, value in lines if name.lower() == b"x-forwarded-for"]
    talk = talk_of(head)
    at = data.draw(st.integers(1, len(head) - 1))
    for form in (talk, talk.cut_at(at, by_client=True), talk.byte_by_byte()):
        outcome = x_forwarded_for.play(form)
        if not values:
            assert kept(outcome) == [None]
            continue
        assert kept(outcome) == [shortened(values)]

# SPDX-License-Identifier: Apache-2.0
"""Connections that Hypothesis draws: messages as clients and servers write them, and spoiled ones.

Their segments may repeat others, overlap them and, if they come in, come in another order.
"""

from __future__ import annotations

import itertools
from dataclasses import replace

from conversations import Conversation, Turn
from hypothesis import strategies as st

_MOST_EXCHANGES = 3
#: Also those that a number of 32 bits has no more room for, within a connection.
_SEQUENCES = st.sampled_from((1000, 2**32 - 1, 2**32 - 40, 2**31 - 10))

_octets = st.binary(max_size=20) | st.sampled_from(
    (b"GET / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\r\n\r\n", b"0\r\n\r\n", b"x" * 300)
)

# ---- heads ----

_METHODS = st.sampled_from((b"GET", b"POST", b"HEAD", b"PUT", b"CONNECT", b"PROPFIND", b"M-SEARCH"))
_TARGETS = st.sampled_from((b"/", b"*", b"/a?b=c&d", b"http://h/x", b"/" + b"l" * 200))
_VERSIONS = st.sampled_from((b"HTTP/1.1",) * 4 + (b"HTTP/1.0",))
_BLANKS = st.sampled_from((b" ",) * 4 + (b"", b"\t", b"   ", b" \t ", b" " * 7))
# Tabs llhttp does not take there.
_AFTER = st.sampled_from((b"",) * 6 + (b" ", b"   ", b" " * 7))
_OTHERS = st.sampled_from(
    (
        (b"User-Agent", b"drawn/1 (x; y)"),
        (b"Accept", b""),
        (b"Cookie", b"c=" + b"k" * 290),
        (b"X-Content-Length", b"7"),
        (b"Content-Lengt", b"7"),
        (b"X", b"Transfer-Encoding: chunked"),
        (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
    )
)


@st.composite
def _field(draw: st.DrawFn, name: bytes, value: bytes) -> bytes:
    case = draw(st.sampled_from((bytes, bytes.lower, bytes.upper)))
    return case(name) + b":" + draw(_BLANKS) + value + draw(_AFTER) + b"\r\n"


@st.composite
def _head(draw: st.DrawFn, first: bytes, framing: tuple[tuple[bytes, bytes], ...]) -> bytes:
    host = ((b"Host", b"h"),) if first.endswith(b"HTTP/1.1") else ()
    others = draw(st.lists(_OTHERS, max_size=3, unique=True))
    fields = draw(st.permutations([*host, *others, *framing]))
    lines = [draw(_field(name, value)) for name, value in fields]
    return first + b"\r\n" + b"".join(lines) + b"\r\n"


# ---- bodies ----


@st.composite
def _chunks(draw: st.DrawFn, content: list[bytes]) -> bytes:
    form = draw(st.sampled_from(("{:x}", "{:X}", "00{:x}")))
    extension = draw(st.sampled_from((b"",) * 4 + (b";a", b";a=b", b';a="q"', b";" + b"e" * 70)))
    trailers = draw(st.sampled_from((b"",) * 3 + (b"A: b\r\n", b"Content-Lengt: 3\r\nB: c\r\n")))
    pieces = [
        form.format(len(piece)).encode() + extension + b"\r\n" + piece + b"\r\n"
        for piece in content
        if piece
    ]
    return b"".join(pieces) + b"0" + extension + b"\r\n" + trailers + b"\r\n"


@st.composite
def _framed(draw: st.DrawFn, first: bytes, bare: bytes | None = b"") -> bytes:
    """A whole message whose first line is given.

    Args:
        bare: what follows a head that says nothing of a body; None: it always does.
    """
    kind = draw(
        st.sampled_from(("length", "chunked") if bare is None else ("bare", "length", "chunked"))
    )
    if kind == "bare":
        return draw(_head(first, ())) + bare
    if kind == "length":
        body = draw(_octets)
        return draw(_head(first, ((b"Content-Length", b"%d" % len(body)),))) + body
    content = draw(st.lists(_octets, max_size=4))
    return draw(_head(first, ((b"Transfer-Encoding", b"chunked"),))) + draw(_chunks(content))


@st.composite
def _request(draw: st.DrawFn) -> bytes:
    method = draw(_METHODS)
    target = b"h:443" if method == b"CONNECT" else draw(_TARGETS)
    first = b" ".join((method, target, draw(_VERSIONS)))
    empty = draw(st.sampled_from((b"",) * 8 + (b"\r\n",)))
    # A CONNECT has no content: RFC 9110, section 9.3.6.
    return empty + draw(_head(first, ()) if method == b"CONNECT" else _framed(first))


_STATUSES = st.sampled_from((b"200",) * 4 + (b"204", b"304", b"404", b"500", b"999"))
_REASONS = st.sampled_from((b" OK", b" ", b" Not at all OK", b" \xc3\xa9"))
_INTERIM = st.sampled_from(
    (b"",) * 6
    + (b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" * 2)
)


@st.composite
def _response(draw: st.DrawFn, method: bytes, *, ends: bool) -> bytes:
    """Args: ends: the connection ends with it."""
    status = draw(_STATUSES)
    first = draw(_VERSIONS) + b" " + status + draw(_REASONS)
    interim = draw(_INTERIM)
    if method == b"HEAD" or status in (b"204", b"304"):
        framing = draw(
            st.sampled_from(
                ((), ((b"Content-Length", b"7"),), ((b"Transfer-Encoding", b"chunked"),))
            )
        )
        if status == b"204":
            framing = ()
        return interim + draw(_head(first, framing))
    return interim + draw(_framed(first, draw(_octets) if ends else None))


# ---- segments ----


@st.composite
def _parts(draw: st.DrawFn, length: int, *, comes_in: bool) -> tuple[tuple[int, int], ...]:
    """Ranges of so many bytes, as segments; in another order only if they come in."""
    if length < 2:
        return ()
    places = draw(st.lists(st.integers(1, length - 1), max_size=5, unique=True))
    parts = list(itertools.pairwise([0, *sorted(places), length]))
    if comes_in:
        parts = draw(st.just(parts) | st.permutations(parts))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(parts) - 1))
        start, end = parts[at]
        # Some of the bytes beside it come with it again.
        start = max(0, start - draw(st.integers(0, 4)))
        if comes_in:
            end = min(length, end + draw(st.integers(0, 4)))
        parts.insert(draw(st.integers(at + 1, len(parts))), (start, end))
    return tuple(parts)


@st.composite
def _turn(draw: st.DrawFn, by_client: bool, data: bytes, of_client: bool) -> Turn:
    return Turn(by_client, data, draw(_parts(len(data), comes_in=by_client != of_client)))


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    """Whole connections."""
    of_client = draw(st.booleans())
    requests = draw(st.lists(_request(), min_size=1, max_size=_MOST_EXCHANGES))
    methods = [each.lstrip(b"\r\n").partition(b" ")[0] for each in requests]
    closed = draw(st.booleans())
    responses = [draw(_response(method, ends=False)) for method in methods[:-1]]
    responses.append(draw(_response(methods[-1], ends=closed)))
    if draw(st.booleans()):
        said = [(True, b"".join(requests)), (False, b"".join(responses))]
    else:
        said = [
            turn
            for asked, answered in zip(requests, responses, strict=True)
            for turn in ((True, asked), (False, answered))
        ]
    return Conversation(
        tuple(draw(_turn(by_client, data, of_client)) for by_client, data in said),
        of_client=of_client,
        closed=closed,
        client_seq=draw(_SEQUENCES),
        server_seq=draw(_SEQUENCES),
        linear=draw(st.booleans()),
    )


# ---- spoiled ----

# What decides about framing, and what may look like it.
_SPOILERS = st.sampled_from(
    [bytes([octet]) for octet in b"\0\t\n\r !,-/0123:;AaHxz\x7f\xa0"]
    + [b"\r\n", b"  ", b"chunked", b"Content-Length: 3\r\n", b"Transfer-Encoding: gzip\r\n"]
)


@st.composite
def spoiled_conversations(draw: st.DrawFn) -> Conversation:
    """The same with up to three places where something was put in, taken out or another."""
    talk = draw(conversations())
    turns = list(talk.turns)
    for _ in range(draw(st.integers(1, 3))):
        index = draw(st.integers(0, len(turns) - 1))
        data = turns[index].data
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.sampled_from((0, 0, 1, 1, 2))))
        spoiled = data[:start] + draw(_SPOILERS | st.just(b"")) + data[end:]
        turns[index] = Turn(turns[index].by_client, spoiled)
    return replace(talk, turns=tuple(turns))

# SPDX-License-Identifier: Apache-2.0
"""Where messages of HTTP/1 begin and end, by the letter of RFC 9112: the last word in the tests.

Of a head it looks only at what decides about that. What a recipient may forgive without any doubt
where a message ends (section 2.2's bare LF, say) is forgiven; where there is doubt nothing is said.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REQUEST_LINE = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ .+ HTTP/1\.[0-9]", re.DOTALL)
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9][0-9])(?: .*)?\Z", re.DOTALL)
_FRAMING = (b"content-length", b"transfer-encoding")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]+)[ \t]*(?:;[^\n]*)?\r?\n")


class Unclear(Exception):
    """The bytes are no message, or one of which nobody can say where it ends."""


class Unfinished(Exception):
    """So far they are, and there is more to come."""


@dataclass(frozen=True)
class Message:
    """A message in a stream of them.

    Attributes:
        start: its first byte; empty lines before it are not part of it.
        end: where the next one may begin.
        body: bytes of content, without what frames chunks.
        line: its first line, without what ends it.
        status: of a response; 0: it is a request.
        tunnel: what comes after it is another protocol's.
        until_close: it ends with the connection.
    """

    start: int
    end: int
    body: int
    line: bytes
    chunked: bool = False
    status: int = 0
    tunnel: bool = False
    until_close: bool = False

    @property
    def method(self) -> bytes:
        return self.line.partition(b" ")[0]

    @property
    def minor(self) -> int:
        return int(self.line[-1:])

    @property
    def size(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class _Head:
    start: int
    end: int
    line: bytes
    lengths: tuple[bytes, ...]
    codings: tuple[bytes, ...]


def skip_empty_lines(data: bytes, at: int) -> int:
    while data[at : at + 1] in (b"\r", b"\n") and at < len(data):
        at += 1
    return at


def _line(data: bytes, at: int) -> tuple[bytes, int]:
    end = data.find(b"\n", at)
    if end < 0:
        raise Unfinished
    return data[at:end].removesuffix(b"\r"), end + 1


def _list(values: list[bytes]) -> tuple[bytes, ...]:
    """The elements of a field that may come in several lines; RFC 9110, section 5.6.1."""
    elements = [each.strip(b" \t") for value in values for each in value.split(b",")]
    return tuple(elements)


def _head(data: bytes, start: int, *, of_request: bool) -> _Head:
    first, at = _line(data, start)
    fields: list[tuple[bytes, bytes]] = []
    while True:
        line, at = _line(data, at)
        if not line:
            break
        if line[:1] in (b" ", b"\t"):  # section 5.2
            if not fields:  # section 2.2: such lines may be skipped
                continue
            name, value = fields[-1]
            fields[-1] = (name, (value + b" " + line.strip(b" \t")).strip(b" \t"))
            continue
        name, colon, value = line.partition(b":")
        if not colon:
            fields.append((b"", b""))
            continue
        known = name.rstrip(b" \t").lower()
        if of_request and known != name.lower() and known in _FRAMING:  # section 5.1
            raise Unclear
        fields.append((known, value.strip(b" \t")))

    def of(name: bytes) -> tuple[bytes, ...]:
        return _list([value for known, value in fields if known == name])

    return _Head(start, at, first, of(b"content-length"), of(b"transfer-encoding"))


def _length(head: _Head) -> int:
    """Section 6.3, 5: a list of the same number over and over is that number."""
    if any(not re.fullmatch(rb"[0-9]+", each) for each in head.lengths):
        raise Unclear
    numbers = {int(each) for each in head.lengths}
    if len(numbers) != 1:
        raise Unclear
    return numbers.pop()


def _chunks(data: bytes, at: int) -> tuple[int, int]:
    """Section 7.1: where they end, trailers included, and how much content they have."""
    content = 0
    while True:
        if b"\n" not in data[at:]:
            raise Unfinished
        line = _CHUNK_LINE.match(data, at)
        if not line:
            raise Unclear
        size, at = int(line[1], 16), line.end()
        if not size:
            break
        at += size
        content += size
        if len(data) < at + 2:
            if data[at:] not in (b"", b"\r"):
                raise Unclear
            raise Unfinished
        if data[at : at + 2] != b"\r\n":
            raise Unclear
        at += 2
    while True:
        trailer, at = _line(data, at)
        if not trailer:
            return at, content


def _body(data: bytes, head: _Head) -> tuple[int, int, bool]:
    """Where it ends, its content, and whether it is in chunks."""
    if head.codings:
        if head.codings[-1].lower() != b"chunked":
            raise Unclear
        return *_chunks(data, head.end), True
    length = _length(head) if head.lengths else 0
    if len(data) < head.end + length:
        raise Unfinished
    return head.end + length, length, False


def request(data: bytes, at: int) -> Message:
    """The request that begins at `at`, or behind empty lines there.

    Raises:
        Unclear, Unfinished: as they say.
    """
    start = skip_empty_lines(data, at)
    first, _ = _line(data, start)
    if not _REQUEST_LINE.fullmatch(first):
        raise Unclear
    head = _head(data, start, of_request=True)
    end, body, chunked = _body(data, head)
    return Message(start, end, body, first, chunked)


def response(data: bytes, at: int, method: bytes, *, closed: bool) -> Message:
    """The final response to a request with `method`, after all interim ones. Raises as request().

    Empty lines before it are forgiven, too, and part of it.

    Args:
        closed: nothing comes after `data`.
    """
    while True:
        line_at = skip_empty_lines(data, at)
        first, _ = _line(data, line_at)
        told = _STATUS_LINE.match(first)
        if not told:
            raise Unclear
        status = int(told[1])
        head = _head(data, line_at, of_request=False)
        if status >= 200 or status == 101:
            break
        at = head.end

    def message(end: int, body: int, **more: bool) -> Message:
        return Message(at, end, body, first, status=status, **more)

    if status == 101 or (method == b"CONNECT" and status < 300):
        return message(head.end, 0, tunnel=True)
    if method == b"HEAD" or status in (204, 304):
        return message(head.end, 0)
    if head.codings[-1:] == (b"",):
        raise Unclear
    if head.codings[-1:] and head.codings[-1].lower() == b"chunked":
        is_framed = True
    else:
        is_framed = bool(head.lengths) and not head.codings
    if is_framed:
        end, body, chunked = _body(data, head)
        return message(end, body, chunked=chunked)
    if not closed:
        raise Unfinished
    return message(len(data), len(data) - head.end, until_close=True)

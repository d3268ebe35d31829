# SPDX-License-Identifier: Apache-2.0
"""Parsers of HTTP/1 that others wrote, asked where messages begin and end.

Each reads as rfc9112 does and says the same; what it does not take is Unclear.
"""

from __future__ import annotations

from collections.abc import Callable

import h11
import httptools
import rfc9112
from rfc9112 import Message, Unclear, Unfinished

_MOST = 1 << 20


class H11:
    """h11, in Python."""

    @staticmethod
    def request(data: bytes, at: int) -> Message:
        start = rfc9112.skip_empty_lines(data, at)
        conn = h11.Connection(h11.SERVER, max_incomplete_event_size=_MOST)
        conn.receive_data(data[start:])
        head, body = _h11_events(conn)
        assert isinstance(head, h11.Request)
        end = len(data) - len(conn.trailing_data[0])
        return Message(start, end, body, _first_line(data, start), _is_chunked(head))

    @staticmethod
    def response(data: bytes, at: int, method: bytes, *, closed: bool) -> Message:
        conn = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST)
        host = [("Host", "h")]
        if method.isalpha() and method.isupper():
            conn.send(h11.Request(method=method, target="/", headers=host))
        else:
            conn.send(h11.Request(method="GET", target="/", headers=host))
        conn.send(h11.EndOfMessage())
        conn.receive_data(data[at:])
        if closed:
            conn.receive_data(b"")
        head, body = _h11_events(conn)
        assert isinstance(head, h11.Response | h11.InformationalResponse)
        end = len(data) - len(conn.trailing_data[0])
        status = head.status_code
        start = _final(data, at)
        return _response(data, start, end, body, _is_chunked(head), status, method)


def _h11_events(conn: h11.Connection) -> tuple[h11.Event, int]:
    """The head, a response's final one, and how much content follows it."""
    head, body = None, 0
    try:
        while True:
            event = conn.next_event()
            if event is h11.NEED_DATA:
                raise Unfinished
            if event is h11.PAUSED and head is not None:
                return head, body
            if isinstance(event, h11.Request | h11.Response):
                head = event
                if conn.their_state is h11.SWITCHED_PROTOCOL:
                    return head, body
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return event, body
            elif isinstance(event, h11.Data):
                body += len(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                return head, body
            else:
                raise Unfinished
    except h11.RemoteProtocolError as error:
        if "peer closed connection" in str(error):
            raise Unfinished from None
        raise Unclear from None


def _is_chunked(head: h11.Event) -> bool:
    return any(name == b"transfer-encoding" for name, _ in head.headers)


class _Heard:
    """What httptools calls while a message is read."""

    def __init__(self) -> None:
        self.body = 0
        self.chunked = self.head_is_whole = self.complete = False

    def on_header(self, name: bytes, value: bytes) -> None:
        self.chunked |= name.lower() == b"transfer-encoding"

    def on_headers_complete(self) -> None:
        self.head_is_whole = True

    def on_body(self, body: bytes) -> None:
        self.body += len(body)

    def on_message_complete(self) -> None:
        self.complete = True


class Llhttp:
    """llhttp, which Node has, by httptools."""

    @staticmethod
    def request(data: bytes, at: int) -> Message:
        start = rfc9112.skip_empty_lines(data, at)
        heard = _Heard()
        parser = httptools.HttpRequestParser(heard)
        end = _llhttp(parser, data, start, lambda: heard.complete)
        if parser.get_http_version() not in ("1.0", "1.1"):
            raise Unclear
        return Message(start, end, heard.body, _first_line(data, start), heard.chunked)

    @staticmethod
    def response(data: bytes, at: int, method: bytes, *, closed: bool) -> Message:
        while True:
            heard = _Heard()
            parser = httptools.HttpResponseParser(heard)

            def is_done(heard: _Heard = heard, parser: object = parser) -> bool:
                status = parser.get_status_code() if heard.head_is_whole else 0
                # httptools cannot be told to what it responds.
                bodiless = method == b"HEAD" or (method == b"CONNECT" and status // 100 == 2)
                return heard.complete or (heard.head_is_whole and bodiless)

            try:
                end = _llhttp(parser, data, at, is_done)
            except Unfinished:
                if not closed or not heard.head_is_whole or heard.chunked:
                    raise
                if _says_length(data, at):
                    raise
                end = len(data)
            status = parser.get_status_code()
            if status >= 200 or status == 101:
                return _response(data, at, end, heard.body, heard.chunked, status, method)
            at = end


def _says_length(data: bytes, at: int) -> bool:
    return b"\ncontent-length" in data[at : data.index(b"\n\r\n", at)].lower()


def _llhttp(parser: httptools.HttpParser, data: bytes, at: int, is_done: Callable[[], bool]) -> int:
    """Feeds it byte by byte: it does not say where a message ends."""
    try:
        while at < len(data):
            parser.feed_data(data[at : at + 1])
            at += 1
            if is_done():
                return at
    except httptools.HttpParserUpgrade:
        return at + 1
    except httptools.HttpParserError:
        raise Unclear from None
    raise Unfinished


def _response(
    data: bytes, start: int, end: int, body: int, chunked: bool, status: int, method: bytes
) -> Message:
    tunnel = status == 101 or (method == b"CONNECT" and status < 300)
    chunked &= not (tunnel or method == b"HEAD" or status in (204, 304))
    return Message(start, end, body, _first_line(data, start), chunked, status, tunnel)


def _first_line(data: bytes, start: int) -> bytes:
    return data[start : data.index(b"\n", start)].removesuffix(b"\r")


def _final(data: bytes, at: int) -> int:
    """Where the response begins that is no interim one."""
    while data[at + 9 : at + 10] == b"1" and data[at + 9 : at + 12] != b"101":
        at = data.index(b"\r\n\r\n", at) + 4
    return at

# SPDX-License-Identifier: Apache-2.0
"""Messages that are hard to read right, each as small as it can be."""

from __future__ import annotations

from dataclasses import dataclass

_OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
_GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
_NEXT = b"GET /next HTTP/1.1\r\nHost: h\r\n\r\n"


@dataclass(frozen=True)
class Odd:
    """One connection.

    Attributes:
        name: what is odd.
        by_letter: RFC 9112 alone decides what has to be seen, whatever others refuse.
        closed: the server ends it.
    """

    name: str
    asked: bytes = _GET
    answered: bytes = _OK
    by_letter: bool = False
    closed: bool = False


def _asked(name: str, fields: bytes, body: bytes = b"", **more: bool) -> Odd:
    return Odd(
        name, b"POST / HTTP/1.1\r\nHost: h\r\n" + fields + b"\r\n" + body + _NEXT, 2 * _OK, **more
    )


def _line(name: str, line: bytes, **more: bool) -> Odd:
    return Odd(name, line + b"\r\nHost: h\r\n\r\n" + _NEXT, 2 * _OK, **more)


def _answered(name: str, fields: bytes, body: bytes = b"", **more: bool) -> Odd:
    return Odd(name, _GET + _NEXT, b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n" + body + _OK, **more)


def _status(name: str, line: bytes, **more: bool) -> Odd:
    return Odd(name, _GET + _NEXT, line + b"\r\nContent-Length: 1\r\n\r\na" + _OK, **more)


_CHUNKED = b"Transfer-Encoding: chunked\r\n"

BLANKS = tuple(
    odd
    for say, where in ((_asked, "request"), (_answered, "response"))
    for count in (0, 1, 7, 8, 9, 40)
    for blank, of in ((b" ", "blanks"), (b"\t", "tabs"))
    for odd in (
        say(
            f"{count} {of} before a {where}'s length",
            b"Content-Length:" + count * blank + b"3\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"{count} {of} after a {where}'s length",
            b"Content-Length: 3" + count * blank + b"\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"{count} {of} before a {where}'s coding",
            b"Transfer-Encoding:" + count * blank + b"chunked\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"{count} {of} after a {where}'s coding",
            b"Transfer-Encoding: chunked" + count * blank + b"\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
    )
)

LENGTHS = tuple(
    odd
    for say, where in ((_asked, "request"), (_answered, "response"))
    for odd in (
        say(
            f"a {where}'s length over and over", b"Content-Length: 3, 3\r\n", b"abc", by_letter=True
        ),
        say(
            f"a {where}'s length in two lines",
            b"Content-Length: 3\r\nContent-Length: 3\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length over and over, in other words",
            b"Content-Length:3 ,\t03,003  ,3 \r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length in two lines, in other words",
            b"Content-Length: 3\r\nContent-Length:  03, 3\r\nContent-Length: 3 \r\n",
            b"abc",
            by_letter=True,
        ),
        say(f"two lengths of a {where}", b"Content-Length: 3, 4\r\n", b"abcd"),
        say(f"two lengths of a {where} behind one", b"Content-Length: 3, 3, 4\r\n", b"abcd"),
        say(f"a list of a {where}'s length with a hole", b"Content-Length: 3,,3\r\n", b"abc"),
        say(f"a {where}'s length and a comma", b"Content-Length: 3,\r\n", b"abc"),
        say(f"a comma and a {where}'s length", b"Content-Length: ,3\r\n", b"abc"),
        say(f"a {where}'s length of two words in a list", b"Content-Length: 3 3, 3\r\n", b"abc"),
        say(f"a {where}'s length and no number", b"Content-Length: 3, x\r\n", b"abc"),
        say(
            f"two lengths of a {where} in two lines, one of them no number",
            b"Content-Length: x\r\nContent-Length: 3\r\n",
            b"abc",
        ),
        say(
            f"two lengths of a {where} in two lines",
            b"Content-Length: 3\r\nContent-Length: 4\r\n",
            b"abcd",
        ),
        say(f"a {where}'s length with a zero before it", b"Content-Length: 03\r\n", b"abc"),
        say(
            f"a {where}'s length with many zeros",
            b"Content-Length: " + 20 * b"0" + b"3\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length of seventeen digits",
            b"Content-Length: 00000000000000003\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length that begins like one of 64 bits",
            b"Content-Length: 18446744073709551616, 0\r\n",
            b"abc",
        ),
        say(f"a {where}'s length of twenty digits", b"Content-Length: " + 20 * b"9" + b"\r\n"),
        say(f"a {where}'s great length", b"Content-Length: 123456789012345678\r\n", b"abc"),
        say(f"a {where}'s length with a sign", b"Content-Length: +3\r\n", b"abc"),
        say(f"a {where}'s length that is none", b"Content-Length:\r\n", b"abc"),
        say(f"a {where}'s length of two words", b"Content-Length: 3 3\r\n", b"abc"),
        say(
            f"a {where}'s length beyond 64 bits",
            b"Content-Length: 18446744073709551619\r\n",
            b"abc",
        ),
        say(f"a blank before the colon of a {where}'s length", b"Content-Length : 3\r\n", b"abc"),
        say(f"a {where}'s length folded", b"Content-Length:\r\n 3\r\n", b"abc"),
        say(
            f"a {where}'s length with more folded behind it", b"Content-Length: 3\r\n 3\r\n", b"abc"
        ),
        say(f"a folded line that looks like a {where}'s length", b"A: b\r\n Content-Length: 3\r\n"),
        say(
            f"a {where}'s length folded, by the letter",
            b"Content-Length:\r\n \r\n\t3\r\n \r\nA: b\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length over and over, folded",
            b"Content-Length: 3,\r\n\t3\r\n , 3\r\n",
            b"abc",
            by_letter=True,
        ),
        say(
            f"a {where}'s length folded by LF",
            b"Content-Length:\n 3\nA: b\r\n",
            b"abc",
            by_letter=True,
        ),
        say(f"two lengths of a {where}, folded", b"Content-Length: 3,\r\n 4\r\n", b"abcd"),
        say(
            f"a {where}'s length folded before another",
            b"Content-Length: 3\r\n 3\r\nContent-Length: 3\r\n",
            b"abc",
        ),
        say(
            f"a {where}'s length with much folded behind it",
            b"Content-Length: 3\r\n" + 20 * (b" " + 30 * b"x" + b"\r\n"),
            b"abc",
        ),
        say(
            f"a {where}'s length with blanks folded behind it",
            b"Content-Length: 3\r\n" + 5 * (30 * b" " + b"\r\n"),
            b"abc",
            by_letter=True,
        ),
    )
)

CODINGS = tuple(
    odd
    for say, where in ((_asked, "request"), (_answered, "response"))
    for odd in (
        say(
            f"a {where}'s coding that ends like chunked",
            b"Transfer-Encoding: xchunked\r\n",
            b"0\r\n\r\n",
        ),
        say(
            f"a {where}'s codings",
            b"Transfer-Encoding: gzip, chunked\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a {where}'s codings in two lines",
            b"Transfer-Encoding: gzip\r\n" + _CHUNKED,
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a {where}'s codings of which chunked is not the last",
            b"Transfer-Encoding: chunked, gzip\r\n",
            b"0\r\n\r\n",
        ),
        say(
            f"the same of a {where} in two lines",
            _CHUNKED + b"Transfer-Encoding: gzip\r\n",
            b"0\r\n\r\n",
        ),
        say(f"a {where}'s coding twice", b"Transfer-Encoding: chunked, chunked\r\n", b"0\r\n\r\n"),
        say(
            f"a {where}'s coding with a parameter",
            b"Transfer-Encoding: chunked;a=b\r\n",
            b"0\r\n\r\n",
        ),
        say(f"a {where}'s coding in another case", b"transfer-encoding: CHUNKED\r\n", b"0\r\n\r\n"),
        say(
            f"a {where}'s unknown coding and its length",
            b"Transfer-Encoding: gzip\r\nContent-Length: 3\r\n",
            b"abc",
        ),
        say(
            f"a {where}'s coding and its length",
            _CHUNKED + b"Content-Length: 3\r\n",
            b"1\r\na\r\n0\r\n\r\n",
        ),
        say(
            f"a {where}'s length and its coding",
            b"Content-Length: 3\r\n" + _CHUNKED,
            b"1\r\na\r\n0\r\n\r\n",
        ),
        say(
            f"a {where}'s coding folded",
            b"Transfer-Encoding:\r\n chunked\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a {where}'s codings folded",
            b"Transfer-Encoding: gzip,\r\n   \r\n\tchunked\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a {where}'s codings and blanks between them",
            b"Transfer-Encoding: gzip ,   chunked\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a {where}'s coding with another folded behind it",
            b"Transfer-Encoding: chunked\r\n , gzip\r\n",
            b"0\r\n\r\n",
        ),
        say(
            f"a {where}'s coding of two words",
            b"Transfer-Encoding: gzip\r\n chunked\r\n",
            b"0\r\n\r\n",
        ),
        say(
            f"a blank before the colon of a {where}'s coding, and another",
            b"Transfer-Encoding : gzip\r\n" + _CHUNKED,
            b"0\r\n\r\n",
        ),
        say(
            f"a {where}'s chunks and a length that is none",
            _CHUNKED + b"Content-Length: x\r\n",
            b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a blank before the colon of a {where}'s coding",
            b"Transfer-Encoding : chunked\r\n",
            b"0\r\n\r\n",
        ),
        say(f"a {where}'s coding that is none", b"Transfer-Encoding:\r\n", b""),
    )
)

NAMES = tuple(
    odd
    for say, where in ((_asked, "request"), (_answered, "response"))
    for odd in (
        say(f"a name that begins like a {where}'s coding's", b"Transfer-Encoding-X: chunked\r\n"),
        say(f"a name that is nearly a {where}'s coding's", b"Transfer-Encodinx: chunked\r\n"),
        say(f"a name that begins like a {where}'s length's", b"Content-Length-X: 3\r\n"),
        say(f"a name that ends like a {where}'s length's", b"X-Content-Length: 3\r\n"),
        say(f"a name with a CR in place of a {where}'s hyphen", b"Content\rLength: 3\r\n"),
        say(f"a control character in place of a {where}'s colon", b"Content-Length\x1a 3\r\n"),
    )
)

CHUNKS = tuple(
    odd
    for say, where in ((_asked, "request"), (_answered, "response"))
    for odd in (
        say(f"a chunk of a {where} without a digit", _CHUNKED, b"\r\n\r\n"),
        say(f"a chunk of a {where} that is an extension alone", _CHUNKED, b";a\r\n\r\n"),
        say(
            f"a chunk of a {where} with a blank before its size", _CHUNKED, b" 1\r\na\r\n0\r\n\r\n"
        ),
        say(
            f"a chunk of a {where} with a blank behind its size",
            _CHUNKED,
            b"1 \r\na\r\n0 \r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a chunk of a {where} with a word behind its size", _CHUNKED, b"1 a\r\na\r\n0\r\n\r\n"
        ),
        say(f"a chunk of a {where} with a CR within its line", _CHUNKED, b"1\ra\r\na\r\n0\r\n\r\n"),
        say(f"a chunk of a {where} that goes on behind its end", _CHUNKED, b"1\r\nabc0\r\n\r\n"),
        say(f"a chunk of a {where} that LF ends", _CHUNKED, b"1\r\na\n0\r\n\r\n"),
        say(f"a chunk of a {where} that CR ends", _CHUNKED, b"1\r\na\r0\r\n\r\n"),
        say(f"a chunk of a {where} that two CRs end", _CHUNKED, b"1\r\na\r\r\n0\r\n\r\n"),
        say(f"a chunk of a {where} that two lines end", _CHUNKED, b"1\r\na\r\n\r\n0\r\n\r\n"),
        say(
            f"a chunk of a {where} that goes on like the next one",
            _CHUNKED,
            b"1\r\na1\r\na\r\n0\r\n\r\n",
        ),
        say(
            f"chunks of a {where}",
            _CHUNKED,
            b"".join(b"%x\r\n%b\r\n" % (n, n * b"\r") for n in (1, 2, 50, 62, 70, 300))
            + b"0\r\n\r\n",
            by_letter=True,
        ),
        say(
            f"a trailer of a {where} that is two CRs",
            _CHUNKED,
            b"1\r\na\r\n0\r\n\r\r\nA: b\r\n\r\n",
        ),
        say(f"a trailer of a {where} that LF ends", _CHUNKED, b"1\r\na\r\n0\r\n\n"),
        say(f"the last chunk of a {where} with zeros", _CHUNKED, b"00000000\r\n\r\n"),
        say(f"a chunk of a {where} whose line LF ends", _CHUNKED, b"1\na\r\n0\r\n\r\n"),
        say(f"a chunk of a {where} in C's form", _CHUNKED, b"0x1\r\na\r\n0\r\n\r\n"),
        say(f"a chunk of a {where} with a sign", _CHUNKED, b"+1\r\na\r\n0\r\n\r\n"),
        say(
            f"a chunk of a {where} beyond 64 bits", _CHUNKED, b"10000000000000001\r\na\r\n0\r\n\r\n"
        ),
        say(f"a chunk of a {where} with many zeros", _CHUNKED, 20 * b"0" + b"1\r\na\r\n0\r\n\r\n"),
        say(f"a folded trailer of a {where}", _CHUNKED, b"0\r\nA: b\r\n c\r\n\r\n"),
        say(
            f"a trailer of a {where} that is a length", _CHUNKED, b"0\r\nContent-Length: 9\r\n\r\n"
        ),
    )
)

LINES = (
    _line("a method of a letter", b"X / HTTP/1.1", by_letter=True),
    _line("a method in small letters", b"get / HTTP/1.1", by_letter=True),
    _line("a method that begins with a digit", b"2x / HTTP/1.1", by_letter=True),
    _line("a method that begins with a mark", b"!x / HTTP/1.1", by_letter=True),
    _line("a method with a hyphen", b"M-SEARCH * HTTP/1.1"),
    _line("a method that begins like another", b"HEADER / HTTP/1.1", by_letter=True),
    _line("a method that is nearly another", b"HEAD/ / HTTP/1.1"),
    _line("a method of WebDAV", b"PROPFIND / HTTP/1.1", by_letter=True),
    _line("a method of all marks", b"!#$%&'*+-.^_`|~09azAZ / HTTP/1.1", by_letter=True),
    _line("a method like HTTP/2's preface", b"PRI / HTTP/1.1"),
    _line("a method of 200 letters", 200 * b"m" + b" / HTTP/1.1", by_letter=True),
    _line("a method of 300 letters", 300 * b"m" + b" / HTTP/1.1"),
    _line("a method that is no token", b"G@T / HTTP/1.1"),
    _line("a method of another alphabet", b"GE\xc3\x89 / HTTP/1.1"),
    _line("a tab behind the method", b"GET\t/ HTTP/1.1"),
    _line("a method that a colon ends", b"get: / HTTP/1.1"),
    _line("a line of another protocol", b"get key"),
    _line("a line of another protocol, in capitals", b"SSH-2.0-x"),
    _line("a long method", 60 * b"M" + b" / HTTP/1.1", by_letter=True),
    _line("no method", b" / HTTP/1.1"),
    _line("no target", b"GET HTTP/1.1"),
    _line("no target and two blanks", b"GET  HTTP/1.1"),
    _line("no target behind a rare method", b"get HTTP/1.1"),
    _line("no blank before the version", b"GET /HTTP/1.1"),
    _line("no version", b"GET /"),
    _line("another version", b"GET / HTTP/2.0"),
    _line("a version that is no number", b"GET / HTTP/1.x"),
    _line("a version of two digits", b"GET / HTTP/1.10"),
    _line("a version in small letters", b"GET / http/1.1"),
    _line("a blank behind the version", b"GET / HTTP/1.1 "),
    _line("two blanks", b"GET  /  HTTP/1.1"),
    _line("a blank in the target", b"GET /a b HTTP/1.1"),
    _line("a target of 240 bytes", b"GET /" + 239 * b"a" + b" HTTP/1.0"),
    *(
        _line(
            f"a line of {length} bytes",
            b"GET /" + (length - 14) * b"a" + b" HTTP/1.0",
            by_letter=True,
        )
        for length in (254, 255, 256, 257, 258, 272, 1023, 1024, 1025, 1040)
    ),
    _line("a target of 300 CRs", b"GET /" + 300 * b"\r" + b" HTTP/1.0"),
    _line("a target of 2000 tabs", b"GET /" + 2000 * b"\t" + b" HTTP/1.0"),
    _line("300 bytes and another version", b"GET /" + 299 * b"a" + b" HTTP/2.0"),
    _line("300 bytes and a version of two digits", b"GET /" + 299 * b"a" + b" HTTP/1.10"),
    _line("a POST with a target of 300 bytes", b"POST /" + 299 * b"a" + b" HTTP/1.1"),
    _line("a target of 300 bytes", b"GET /" + 299 * b"a" + b" HTTP/1.0"),
    _line("a target of 3000 bytes", b"GET /" + 2999 * b"a" + b" HTTP/1.0"),
    _line("300 bytes and no version", b"GET /" + 299 * b"a"),
    _line("a CR within the line", b"GET /\rx HTTP/1.1"),
    Odd("a blank before the first field", b"GET / HTTP/1.1\r\n Host: h\r\n\r\n" + _NEXT, 2 * _OK),
    Odd(
        "LF at all ends",
        b"GET / HTTP/1.1\nHost: h\n\n" + _NEXT,
        b"HTTP/1.1 200 OK\nContent-Length: 1\n\na" + _OK,
    ),
    Odd(
        "an empty line before a request",
        b"\r\n" + _GET + b"\r\n\n" + _NEXT,
        2 * _OK,
        by_letter=True,
    ),
)

STATUSES = (
    _status("a status of letters", b"HTTP/1.1 2XX OK"),
    _status("a status of marks", b"HTTP/1.1 2:; OK"),
    _status("a status of two digits", b"HTTP/1.1 20 OK OK"),
    _status("a status of four digits", b"HTTP/1.1 2000 OK"),
    _status("a status that begins with 0", b"HTTP/1.1 099 OK"),
    _status("no reason", b"HTTP/1.1 200"),
    _status("an empty reason", b"HTTP/1.1 200 "),
    _status("a reason without a blank", b"HTTP/1.1 200OK"),
    _status("no blank before the status", b"HTTP/1.1x200 OK"),
    _status("two blanks before the status", b"HTTP/1.1  200 OK"),
    _status("a response's version that is no number", b"HTTP/1.x 200 OK"),
    _status("a response of another version", b"HTTP/2.0 200 OK", by_letter=True),
    _status("a reason of 300 bytes", b"HTTP/1.1 200 " + 300 * b"r"),
)

ENDS = (
    Odd("an empty line before a response", _GET + _NEXT, b"\r\n" + _OK + b"\n" + _OK),
    Odd(
        "a chunk that is none behind a whole request",
        _GET + b"POST / HTTP/1.1\r\nHost: h\r\n" + _CHUNKED + b"\r\nx\r\n",
    ),
    Odd("a first line that is none behind a whole request", _GET + b"GET / HTTP/x.1\r\n\r\n"),
    Odd("bytes behind a whole request", _GET + b"\0"),
    Odd("text behind a whole request", _GET + b"garbage"),
    Odd("bytes behind a whole body", b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\nabc"),
    Odd("bytes behind a whole response", _GET, _OK + b"more"),
    Odd(
        "requests behind a CONNECT that becomes a tunnel",
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n" + _GET + _NEXT,
        b"HTTP/1.1 200 OK\r\n\r\n" + 2 * _OK,
    ),
    Odd(
        "half a request behind a CONNECT that becomes a tunnel",
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n" + _GET[:-2],
        b"HTTP/1.1 200 OK\r\n\r\n" + _OK,
    ),
    Odd(
        "requests behind a CONNECT that becomes none",
        b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n" + _GET + _NEXT,
        b"HTTP/1.1 405 No\r\nContent-Length: 1\r\n\r\na" + 2 * _OK,
    ),
    Odd(
        "a request behind one that changes the protocol",
        _GET + _NEXT,
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n" + _OK,
    ),
    Odd(
        "a HEAD, a CONNECT and others",
        b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + _GET + b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"
        + _OK
        + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n",
        by_letter=True,
    ),
    Odd("a response to a HEAD with a body", b"HEAD / HTTP/1.1\r\nHost: h\r\n\r\n" + _NEXT, 2 * _OK),
    Odd("a 204 with a length", _GET + _NEXT, b"HTTP/1.1 204 No\r\nContent-Length: 0\r\n\r\n" + _OK),
    Odd(
        "a 304 with two lengths",
        _GET + _NEXT,
        b"HTTP/1.1 304 No\r\nContent-Length: 3, 4\r\n\r\n" + _OK,
        by_letter=True,
    ),
    Odd(
        "until the end, a blank before the colon of a coding",
        _GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\nabc",
        closed=True,
    ),
    Odd(
        "until the end, in a coding, with two lengths",
        _GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 3, 4\r\n\r\nabc",
        closed=True,
        by_letter=True,
    ),
    Odd(
        "until the end, with two lengths",
        _GET,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3, 4\r\n\r\nabc",
        closed=True,
    ),
    Odd("until the end", _GET, b"HTTP/1.1 200 OK\r\n\r\nabc", closed=True),
    Odd(
        "until the end, in an unknown coding",
        _GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nabc",
        closed=True,
        by_letter=True,
    ),
    Odd(
        "until the end, in an unknown coding with a length",
        _GET,
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\nContent-Length: 1\r\n\r\nabc",
        closed=True,
        by_letter=True,
    ),
    Odd(
        "an interim response with a length",
        _GET,
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n" + _OK,
    ),
)

ALL = BLANKS + LENGTHS + CODINGS + NAMES + CHUNKS + LINES + STATUSES + ENDS

# SPDX-License-Identifier: Apache-2.0
"""HTTP/1 messages as bytes."""

from __future__ import annotations

from collections.abc import Iterable

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


def request(
    method: str = "GET", target: str = "/", headers: dict[str, str] | None = None, body: bytes = b""
) -> bytes:
    """A request; with a body it gets its Content-Length."""
    lines = {"Host": "test", **(headers or {})}
    if body:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body


def response(
    status: int = 200, headers: dict[str, str] | None = None, body: bytes | None = None
) -> bytes:
    """A response; with a body, be it empty, it gets its Content-Length."""
    lines = dict(headers or {})
    if body is not None:
        lines["Content-Length"] = str(len(body))
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Reason\r\n{head}\r\n".encode() + (body or b"")


def chunk(data: bytes, *, extension: str = "", form: str = "x") -> bytes:
    """One chunk; form "X" writes its size in upper case."""
    return f"{len(data):{form}}{extension}\r\n".encode() + data + b"\r\n"


def chunks(pieces: Iterable[bytes], trailers: bytes = b"") -> bytes:
    """A whole chunked body."""
    return b"".join(chunk(piece) for piece in pieces) + b"0\r\n" + trailers + b"\r\n"


CHUNKED = {"Transfer-Encoding": "chunked"}

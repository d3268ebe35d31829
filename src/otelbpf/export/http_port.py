# SPDX-License-Identifier: Apache-2.0
"""A port where everybody may fetch a few pages: bounded in threads, connections, memory and time.

One thread serves all connections and waits for none of them. Who is slow, silent or sends too much
costs a place among a few, and gives that up to who comes later.
"""

from __future__ import annotations

import logging
import re
import selectors
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from http import HTTPStatus

_log = logging.getLogger(__name__)

#: Open at once; one more takes the place of the oldest.
CONNECTIONS_MOST = 64
#: Of a request's head, in bytes.
HEAD_MOST = 8_192
# How long it may take to send a head, to take an answer, and to close after that.
_HEAD_S, _ANSWER_S, _CLOSE_S = 5.0, 30.0, 2.0
# How long stopping waits for those who are taking their answers.
_STOP_S = 5.0
_BACKLOG = 128
# What the kernel keeps for a connection of what it has not sent, about.
_SEND_BUFFER = 1 << 18
# Sent, or received, at once; and so often in a row.
_PIECE, _TURNS = 1 << 16, 16
_NEVER = re.compile(r"q=0(\.0*)?")
# 6 MB of metrics become 0.4; higher levels would take longer than making them.
_GZIP_LEVEL = 1
_GZIP = zlib.MAX_WBITS | 16


@dataclass(frozen=True)
class Page:
    """What is fetched.

    Attributes:
        gzipped: the text; who does not take gzip gets it unpacked.
        length: of the text, in bytes.
    """

    content_type: str
    gzipped: bytes
    length: int
    status: HTTPStatus = HTTPStatus.OK

    @classmethod
    def of(cls, text: bytes, content_type: str, status: HTTPStatus = HTTPStatus.OK) -> Page:
        """The page with this text."""
        return cls.of_pieces((text,), content_type, status)

    @classmethod
    def of_pieces(
        cls, pieces: Iterable[bytes], content_type: str, status: HTTPStatus = HTTPStatus.OK
    ) -> Page:
        """The page with this text, which is never there as a whole."""
        packer = zlib.compressobj(_GZIP_LEVEL, wbits=_GZIP)
        length, packed = 0, []
        for piece in pieces:
            length += len(piece)
            packed.append(packer.compress(piece))
        packed.append(packer.flush())
        return cls(content_type, b"".join(packed), length, status)


#: Makes a page for an Accept field.
MakePage = Callable[[str], Page]


@dataclass(frozen=True)
class _Request:
    path: str = ""
    is_head: bool = False
    fields: Mapping[str, str] = field(default_factory=dict)


class _Refused(Exception):
    def __init__(self, status: HTTPStatus, why: str) -> None:
        super().__init__(why)
        self.status = status


class _State(Enum):
    ASKING = auto()
    #: Until the end of the turn.
    ASKED = auto()
    ANSWERED = auto()
    #: What else comes is thrown away: closing at once would take the answer back.
    CLOSING = auto()


@dataclass(eq=False)
class _Client:
    """A connection.

    Attributes:
        give_up_s: when it is closed if it has not come further by then, on the monotonic clock.
        received: of the head.
        unsent, rest: of the answer.
    """

    sock: socket.socket
    give_up_s: float
    state: _State = _State.ASKING
    received: bytearray = field(default_factory=bytearray)
    request: _Request = _Request()
    unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    rest: Iterator[bytes] = field(default_factory=lambda: iter(()))

    @property
    def is_served(self) -> bool:
        """Is it waiting for its answer, or taking it?"""
        return self.state in (_State.ASKED, _State.ANSWERED)


class HttpPort:
    """Listens from when it is made, and answers once it is started.

    Args:
        host, port: where to listen.
        pages: what makes each page, by its path; called by one thread.
        purpose: what the port is for, in a word for people.
    Raises:
        OSError, UnicodeError: it cannot listen there.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, MakePage], purpose: str) -> None:
        self._pages = pages
        self._purpose = purpose
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        self._listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            self._listener.bind(address)
            self._listener.listen(_BACKLOG)
        except OSError:
            self._listener.close()
            raise
        self._listener.setblocking(False)
        # The oldest one first.
        self._clients: dict[object, _Client] = {}  # by socket
        self._is_crowd_told = False
        self._stop_at_s: float | None = None
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="otelbpf-http", daemon=True)

    def start(self) -> None:
        """Starts answering."""
        self._thread.start()

    def stop(self) -> None:
        """Listens no more; who has asked still gets an answer, if it is quick to take it.

        May be called twice.
        """
        if not self._thread.is_alive():
            return
        self._stop_at_s = time.monotonic() + _STOP_S
        self._wake.send(b"\0")
        self._thread.join()
        self._wake.close()
        self._woken.close()

    def _run(self) -> None:
        with self._selector:
            while self._stop_at_s is None:
                self._turn()
            self._selector.unregister(self._woken)
            self._selector.unregister(self._listener)
            self._listener.close()
            while self._keep_served(self._stop_at_s):
                self._turn()

    def _keep_served(self, until_s: float) -> bool:
        """Closes those who wait for no answer; is anybody left?"""
        for client in list(self._clients.values()):
            client.give_up_s = min(client.give_up_s, until_s)
            if not client.is_served:
                self._close(client)
        return bool(self._clients)

    def _turn(self) -> None:
        """Waits until there is something to do, and does it."""
        for ready, _ in self._selector.select(self._patience_s()):
            client = self._clients.get(ready.fileobj)
            if client is not None:
                self._serve(client)
            elif ready.fileobj is self._listener:
                self._accept()
        for client in list(self._clients.values()):
            if client.state is _State.ASKED:
                self._answer(client)
        now_s = time.monotonic()
        for client in list(self._clients.values()):
            if now_s >= client.give_up_s:
                self._close(client)

    def _patience_s(self) -> float | None:
        if not self._clients:
            return None
        first_s = min(client.give_up_s for client in self._clients.values())
        return max(0.0, first_s - time.monotonic())

    def _accept(self) -> None:
        for _ in range(CONNECTIONS_MOST):
            try:
                sock, _address = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                # As where there are no more file descriptors: it would be tried in vain at once.
                _log.warning(
                    "cannot accept a connection to the %s port (%s)", self._purpose, error.strerror
                )
                time.sleep(0.1)
                return
            if len(self._clients) >= CONNECTIONS_MOST:
                self._make_room()
            sock.setblocking(False)
            client = self._clients[sock] = _Client(sock, time.monotonic() + _HEAD_S)
            self._selector.register(sock, selectors.EVENT_READ)
            # A request mostly comes with its connection; so it is served before it is old.
            self._serve(client)

    def _make_room(self) -> None:
        if not self._is_crowd_told:
            self._is_crowd_told = True
            _log.warning(
                "more than %d connections to the %s port at once: the oldest are closed",
                CONNECTIONS_MOST, self._purpose,
            )  # fmt: skip
        clients = self._clients.values()
        idle = (client for client in clients if not client.is_served)
        self._close(next(idle, None) or next(iter(clients)))

    def _serve(self, client: _Client) -> None:
        """Goes on with one that is ready for it."""
        try:
            if client.state is _State.ASKING:
                self._receive(client)
            elif client.state is _State.ANSWERED:
                self._send(client)
            elif not client.sock.recv(_PIECE):
                self._close(client)
        except BlockingIOError:
            pass
        except OSError:
            self._close(client)

    def _receive(self, client: _Client) -> None:
        received = client.sock.recv(_PIECE)
        client.received += received
        head, end, _ = client.received.partition(b"\r\n\r\n")
        if not received:
            self._close(client)
        elif len(head) > HEAD_MOST:
            self._refuse(client, _Refused(
                HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too large"
            ))  # fmt: skip
        elif end:
            try:
                client.request = self._parse(bytes(head))
                client.state = _State.ASKED
            except _Refused as refused:
                self._refuse(client, refused)

    def _parse(self, head: bytes) -> _Request:
        line, *lines = head.decode("latin-1").split("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise _Refused(HTTPStatus.BAD_REQUEST, "this is no request of HTTP/1")
        method, target, _version = words
        path = target.partition("?")[0]
        if path not in self._pages:
            there = " and ".join(self._pages)
            raise _Refused(HTTPStatus.NOT_FOUND, f"what there is to see is at {there}")
        if method not in ("GET", "HEAD"):
            raise _Refused(HTTPStatus.METHOD_NOT_ALLOWED, "this can be read only")
        fields = {}
        for each in lines:
            name, _, value = each.partition(":")
            fields[name.strip().lower()] = value.strip()
        return _Request(path, method == "HEAD", fields)

    def _refuse(self, client: _Client, refused: _Refused) -> None:
        text = f"{refused}\n".encode()
        fields = {"Content-Type": "text/plain"}
        self._begin(client, refused.status, fields, len(text), iter((text,)))

    def _answer(self, client: _Client) -> None:
        request = client.request
        try:
            page = self._pages[request.path](request.fields.get("accept", ""))
        except Exception:
            _log.exception("the %s port's page %s cannot be made", self._purpose, request.path)
            refused = _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "see what otelbpf has logged")
            self._refuse(client, refused)
            return
        fields = {"Content-Type": page.content_type, "Vary": "Accept, Accept-Encoding"}
        if takes(request.fields.get("accept-encoding", ""), "gzip"):
            fields["Content-Encoding"] = "gzip"
            length, pieces = len(page.gzipped), iter((page.gzipped,))
        else:
            length, pieces = page.length, _unpacked(page.gzipped)
        self._begin(client, page.status, fields, length, iter(()) if request.is_head else pieces)

    def _begin(
        self,
        client: _Client,
        status: HTTPStatus,
        fields: Mapping[str, str],
        length: int,
        pieces: Iterator[bytes],
    ) -> None:
        """Begins to send an answer."""
        lines = [
            f"HTTP/1.1 {status.value} {status.phrase}",
            *(f"{name}: {value}" for name, value in fields.items()),
            f"Content-Length: {length}",
            "Connection: close",
        ]
        client.state = _State.ANSWERED
        client.received.clear()
        client.unsent = memoryview(("\r\n".join(lines) + "\r\n\r\n").encode())
        client.rest = pieces
        client.give_up_s = time.monotonic() + _ANSWER_S
        self._selector.modify(client.sock, selectors.EVENT_WRITE)

    def _send(self, client: _Client) -> None:
        for _ in range(_TURNS):
            client.unsent = client.unsent or memoryview(next(client.rest, b""))
            if not client.unsent:
                client.sock.shutdown(socket.SHUT_WR)
                client.state = _State.CLOSING
                client.give_up_s = time.monotonic() + _CLOSE_S
                self._selector.modify(client.sock, selectors.EVENT_READ)
                return
            client.unsent = client.unsent[client.sock.send(client.unsent[:_PIECE]) :]

    def _close(self, client: _Client) -> None:
        self._selector.unregister(client.sock)
        del self._clients[client.sock]
        client.sock.close()


def takes(field_value: str, what: str) -> bool:
    """Does an Accept field name this?"""
    for part in field_value.split(","):
        name, *parameters = (word.strip().lower() for word in part.split(";"))
        if name == what and not any(_NEVER.fullmatch(each) for each in parameters):
            return True
    return False


def _unpacked(gzipped: bytes) -> Iterator[bytes]:
    """The text, in pieces none of which is large."""
    unpack = zlib.decompressobj(wbits=_GZIP)
    for start in range(0, len(gzipped), _PIECE):
        packed = gzipped[start : start + _PIECE]
        while packed:
            piece = unpack.decompress(packed, _PIECE)
            if piece:
                yield piece
            packed = unpack.unconsumed_tail

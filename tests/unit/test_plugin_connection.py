# SPDX-License-Identifier: Apache-2.0
"""Which connection a carrier stands for, and which carriers stand for none."""

from __future__ import annotations

import io
import socket
import tempfile
from typing import Any

import pytest
from plugin_lab import ENVIRON, NOT_AN_END, SCOPE

from otelbpf_plugin.connection import (
    ANY_ADDRESS,
    CLIENT_KEY,
    Ends,
    OwnSocket,
    Unknown,
    connection_of,
    server_end_of,
    server_of,
)

MAPPED = bytes(10) + b"\xff\xff"


class File:
    """Something with a descriptor."""

    def __init__(self, fd: int, **attributes: object) -> None:
        self._fd = fd
        vars(self).update(attributes)

    def __repr__(self) -> str:
        return f"File({self._fd})"  # a test's name tells no address

    def fileno(self) -> int:
        if self._fd < 0:
            raise io.UnsupportedOperation("fileno")
        return self._fd


class Channel:
    """As waitress has it."""

    def __init__(self, sock: object) -> None:
        self.socket = sock

    def check_client_disconnected(self) -> bool:
        return False


class Limited:
    """As Django wraps it: with the wrapped one's method."""

    def __init__(self, stream: Any) -> None:
        self._read = stream.read


@pytest.mark.parametrize("key", ["werkzeug.socket", "gunicorn.socket"])
def test_a_server_s_own_socket(key: str) -> None:
    assert connection_of({**ENVIRON, key: File(7), "wsgi.input": File(8)}) == OwnSocket(7)


def test_a_server_s_closed_socket() -> None:
    with socket.socket() as closed:
        pass
    assert connection_of({**ENVIRON, "gunicorn.socket": closed}) == OwnSocket(-1)


def test_the_input_is_a_file_of_the_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, ours.makefile("rb") as file:
        assert connection_of({**ENVIRON, "wsgi.input": file}) == OwnSocket(ours.fileno())
        assert connection_of({**ENVIRON, "wsgi.input": Limited(file)}) == OwnSocket(ours.fileno())
        gevent = File(-1, rfile=file)
        assert connection_of({**ENVIRON, "wsgi.input": gevent}) == OwnSocket(ours.fileno())


def test_waitress_keeps_it_in_a_channel() -> None:
    asks = Channel(File(7)).check_client_disconnected
    environ = {**ENVIRON, "waitress.client_disconnected": asks, "wsgi.input": File(8)}
    assert connection_of(environ) == OwnSocket(7)
    environ["waitress.client_disconnected"] = Channel(None).check_client_disconnected
    assert connection_of(environ) is None


def test_a_body_in_memory_stays_there() -> None:
    """Asking it for its descriptor would write it to a disk."""
    with tempfile.SpooledTemporaryFile() as body:
        body.write(b"body")
        assert isinstance(connection_of({**ENVIRON, "wsgi.input": body}), Unknown)
        assert not body._rolled


@pytest.mark.parametrize("environ", [
    {"wsgi.input": io.BytesIO(), "SERVER_PORT": 8080},  # of hypercorn
    {"wsgi.input": object(), "SERVER_SOFTWARE": "Granian", "REMOTE_ADDR": "192.0.2.1"},
    {"wsgi.input": None}, {},
], ids=["BytesIO", "granian", "none", "nothing"])  # fmt: skip
def test_an_environ_without_a_socket_has_a_port_at_most(environ: dict[str, Any]) -> None:
    found = connection_of({**ENVIRON, **environ})
    assert isinstance(found, Unknown)
    assert "gunicorn or waitress" in found.why
    assert server_end_of({**ENVIRON, **environ}) == 8080


@pytest.mark.parametrize("port", ["0", "", "None", "x", None, -1, 65_536, "65536", "\u0663", True])
def test_an_environ_without_a_port_is_of_a_unix_socket(port: object) -> None:
    assert connection_of({**ENVIRON, "SERVER_PORT": port}) is None
    assert server_end_of({**ENVIRON, "SERVER_PORT": port}) == 0


@pytest.mark.parametrize("scope", [SCOPE, {**SCOPE, "type": "websocket"}], ids=["http", "ws"])
def test_an_asgi_scope_has_names(scope: dict[str, Any]) -> None:
    peer, local = MAPPED + bytes([192, 0, 2, 1]), MAPPED + bytes([192, 0, 2, 2])
    assert connection_of(scope) == Ends(peer, local, 40_000, 8080)


def test_lists_are_names_too() -> None:
    listed = {**SCOPE, "client": ["192.0.2.1", 40_000], "server": ["192.0.2.2", 8080]}
    assert connection_of(listed) == connection_of(SCOPE)
    assert server_of(listed) == server_of(SCOPE)


@pytest.mark.parametrize(("name", "packed"), [
    ("127.0.0.1", MAPPED + b"\x7f\0\0\1"),
    ("::ffff:127.0.0.1", MAPPED + b"\x7f\0\0\1"),
    ("::1", bytes(15) + b"\1"),
    ("fe80::1%eth0", b"\xfe\x80" + bytes(13) + b"\1"),
])  # fmt: skip
def test_addresses(name: str, packed: bytes) -> None:
    found = connection_of({**SCOPE, "client": (name, 1)})
    assert isinstance(found, Ends)
    assert found.peer == packed


def test_the_client_before_a_header_was_believed() -> None:
    found = connection_of({**SCOPE, CLIENT_KEY: ("127.0.0.1", 5)})
    assert isinstance(found, Ends)
    assert (found.peer, found.peer_port) == (MAPPED + b"\x7f\0\0\1", 5)


@pytest.mark.parametrize("changed", [
    {"http_version": "2"}, {"http_version": "3"}, {"type": "lifespan"},
    # UNIX sockets, as uvicorn, hypercorn and daphne, and granian have them; behind a proxy.
    {"client": None, "server": ("/run/app.sock", None)}, {"client": None, "server": None},
    {"client": ("", "0"), "server": ("/run/app.sock", "0")},
    {"client": ("203.0.113.7", 0), "server": ("/run/app.sock", None)},
    {"client": ("203.0.113.7", 443), "server": ("/run/app.sock", None)},
    {"client": ["203.0.113.7", 0], "server": None},
    {"client": ("unix:", None), "server": ("unix:/run/app.sock", None)},
    {"client": "", "server": "/run/app.sock"}, {"client": b"", "server": b"\0abstract"},
], ids=str)  # fmt: skip
def test_scopes_of_no_connection(changed: dict[str, Any]) -> None:
    assert connection_of({**SCOPE, **changed}) is None


@pytest.mark.parametrize(("client", "server"), [
    (("192.0.2.1", 40_000), ("192.0.2.2", 8080)),  # uvicorn, hypercorn
    (["192.0.2.1", 40_000], ["192.0.2.2", 8080]),  # daphne
    (("192.0.2.1", "40000"), ("192.0.2.2", "8080")),  # granian, which listens on one address
    (("::ffff:192.0.2.1", "40000"), ("::ffff:192.0.2.2", "8080")),
    (("::ffff:192.0.2.1", 40_000, 0, 0), ("::ffff:192.0.2.2", 8080, 0, 0)),
    (["192.0.2.1", "40000"], ("192.0.2.2", 8080)),
], ids=str)  # fmt: skip
def test_each_server_s_scope(client: Any, server: Any) -> None:
    scope = {**SCOPE, "client": client, "server": server}
    assert connection_of(scope) == connection_of(SCOPE)
    assert server_end_of(scope) == 8080
    hash(server_of(scope))


@pytest.mark.parametrize("wildcard", ["0.0.0.0", "::", "::ffff:0.0.0.0"])
def test_a_server_that_says_only_that_it_listens_on_all_addresses(wildcard: str) -> None:
    """Granian."""
    scope = {**SCOPE, "client": ("192.0.2.1", "40000"), "server": (wildcard, "8080")}
    peer = MAPPED + bytes([192, 0, 2, 1])
    assert connection_of(scope) == Ends(peer, ANY_ADDRESS, 40_000, 8080)


@pytest.mark.parametrize("end", NOT_AN_END, ids=repr)
def test_a_client_that_is_no_peer_is_told(end: Any) -> None:
    assert isinstance(connection_of({**SCOPE, "client": ("192.0.2.9", 1)}), Ends)
    found = connection_of({**SCOPE, "client": end})
    assert isinstance(found, Unknown)
    assert found.why.startswith("the client of the ASGI scope")
    assert server_end_of({**SCOPE, "client": end}) == 8080


@pytest.mark.parametrize("end", NOT_AN_END, ids=repr)
def test_a_server_that_is_no_end_is_told_unless_it_is_a_path(end: Any) -> None:
    scope = {**SCOPE, "server": end}
    found = connection_of(scope)
    if isinstance(found, Unknown):
        assert found.why.startswith("the server of the ASGI scope")
    else:
        assert found is None
    hash(server_of(scope))
    assert server_end_of(scope) in (0, 1)


@pytest.mark.parametrize("server", [None, ("localhost", 8080), ("192.0.2.2", None)], ids=str)
def test_a_server_that_is_no_end_is_told(server: Any) -> None:
    assert isinstance(connection_of({**SCOPE, "server": server}), Unknown)


@pytest.mark.parametrize("left_out", ["client", "server", "http_version"])
def test_what_a_scope_leaves_out(left_out: str) -> None:
    scope = {key: value for key, value in SCOPE.items() if key != left_out}
    expected = Ends if left_out == "http_version" else Unknown
    assert isinstance(connection_of(scope), expected)


@pytest.mark.parametrize("carrier", [
    {}, {"traceparent": "00-1-2-01", "type": "http"}, [("traceparent", "x")], None, "headers",
    {**ENVIRON, "SERVER_PROTOCOL": "HTTP/2", "gunicorn.socket": File(7)},
    {**ENVIRON, "SERVER_PROTOCOL": "HTTP/2", "wsgi.input": io.BytesIO()},
    {"wsgi.input": File(7)}, pytest.param(object(), id="object"),
], ids=str)  # fmt: skip
def test_other_carriers(carrier: object) -> None:
    assert connection_of(carrier) is None
    assert server_end_of(carrier) == 0
    server_of(carrier)


@pytest.mark.parametrize(("carrier", "end"), [
    ({**ENVIRON, "gunicorn.socket": File(7)}, OwnSocket(7)),
    (SCOPE, 8080), ({**SCOPE, "client": None}, 8080), ({**SCOPE, "client": ("", 0)}, 8080),
    ({**SCOPE, "server": ["192.0.2.2", 8080]}, 8080), ({**SCOPE, "server": None}, 0),
    ({**SCOPE, "server": ("/run/app.sock", None)}, 0),
], ids=str)  # fmt: skip
def test_the_server_s_end_is_known_whoever_the_client_is(carrier: Any, end: object) -> None:
    assert server_end_of(carrier) == end

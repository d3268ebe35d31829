# SPDX-License-Identifier: Apache-2.0
"""Which server a request is for, by its request line, its Host header, and where it went."""

from __future__ import annotations

import pytest

from otelbpf.protocols.urls import RequestLine, Server, server_asked, split_request_line


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a?b=http://c/d", ("http", "", "/a", "b=http://c/d")),
        ("http://shop.example:81/a/7?b", ("http", "shop.example:81", "/a/7", "b")),
        ("http://10.0.0.1:9000/x", ("http", "10.0.0.1:9000", "/x", "")),
        ("HTTPS://shop.example/", ("https", "shop.example", "/", "")),
        ("http://[2001:db8::9]:81/a", ("http", "[2001:db8::9]:81", "/a", "")),
        ("http://shop.example", ("http", "shop.example", "/", "")),
        ("http://shop.example?b", ("http", "shop.example", "/", "b")),
        ("http://me:secret@shop.example/a", ("http", "shop.example", "/a", "")),
        ("ws://shop.example/a", ("http", "shop.example", "/a", "")),
        ("wss://shop.example/a", ("https", "shop.example", "/a", "")),
        ("http://shop.example:81@secret@:82/a", ("http", "", "/a", "")),
        ("http://[2001:db8::9/a", ("http", "", "/a", "")),
        ("http://sh op/a", ("http", "", "/a", "")),
        ("foo://secret", ("http", "", "/", "")),
        ("foo://secret/a", ("http", "", "/a", "")),
        ("urn://me:secret@shop.example/a", ("http", "", "/a", "")),
        ("http:///a", ("http", "", "/a", "")),
        ("a/b://shop.example/c", ("http", "", "a/b://shop.example/c", "")),
        ("*", ("http", "", "*", "")),
    ],
)
def test_targets(target: str, expected: tuple[str, ...]) -> None:
    assert split_request_line(f"GET {target} HTTP/1.1", is_cut=False) == RequestLine(
        "GET", *expected, path_cut=False
    )


def test_who_is_to_be_connected_to() -> None:
    line = split_request_line("CONNECT me:secret@shop.example:443 HTTP/1.1", is_cut=False)
    assert line.authority == "shop.example:443"


@pytest.mark.parametrize(
    "asked",
    ["/secret", "secret", "me:secret", "me:secret@", "http://secret/", "secret:", "a b:443", "*"],
)
def test_who_is_no_host_and_port_is_not_told(asked: str) -> None:
    assert split_request_line(f"CONNECT {asked} HTTP/1.1", is_cut=False).authority == ""


@pytest.mark.parametrize(
    ("line", "authority", "path_cut"),
    [
        ("GET http://shop.exam", "", True),  # a part of a host is another one
        ("CONNECT shop.exam", "", True),
        ("GET http://shop.example/a", "shop.example", True),
        ("GET http://shop.example?a", "shop.example", False),
        ("GET http://shop.example/a HTT", "shop.example", False),
    ],
)
def test_a_line_that_was_cut(line: str, authority: str, path_cut: bool) -> None:
    split = split_request_line(line, is_cut=True)
    assert (split.authority, split.path_cut) == (authority, path_cut)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (("http", "shop.example:81", "other", "192.0.2.1", 90),
         ("shop.example:81", "shop.example", 81)),
        (("http", "shop.example", "other", "192.0.2.1", 90), ("shop.example", "shop.example", 80)),
        (("https", "shop.example", "other", "192.0.2.1", 90),
         ("shop.example", "shop.example", 443)),
        (("http", "[2001:db8::9]", "other", "192.0.2.1", 90), ("[2001:db8::9]", "2001:db8::9", 80)),
        (("http", "", "other:91", "192.0.2.1", 90), ("other:91", "other", 91)),
        (("http", "", "other", "192.0.2.1", 90), ("other", "other", 90)),
        (("http", "", "", "192.0.2.1", 90), ("192.0.2.1:90", "192.0.2.1", 90)),
        (("http", "", "other:", "192.0.2.1", 90), ("other:", "other", 90)),
        (("http", "", "x_y.~%2d!", "192.0.2.1", 90), ("x_y.~%2d!", "x_y.~%2d!", 90)),
        (("http", "", "[2001:db8::9]:91", "192.0.2.1", 90),
         ("[2001:db8::9]:91", "2001:db8::9", 91)),
        (("http", "shop:99999", "other", "192.0.2.1", 90), ("other", "other", 90)),
        (("http", "[::1::]", "other", "192.0.2.1", 90), ("other", "other", 90)),
        (("http", "", "", "2001:db8::9", 90), ("[2001:db8::9]:90", "2001:db8::9", 90)),
    ],
)  # fmt: skip
def test_which_server_was_asked(
    asked: tuple[str, str, str, str, int], expected: tuple[str, str, int]
) -> None:
    assert server_asked(*asked) == Server(*expected)


@pytest.mark.parametrize(
    "host",
    [
        "me:secret@shop.example", "me@shop.example", "me:secret", "/secret", "shop.example/secret",
        "shop.example?secret", "shop.example#secret", "shop example", "shop.example,\tsecret",
        "<secret>", '"secret"', "%secret", "2001:db8::9", "[secret]", "[2001:db8::9",
        "[2001:db8::9]secret", "shop:81:82", "shop:-1", "shop:65536", "shop:" + 20 * "9",
        "shop:\u0661", "\ufffd", ":81",
    ],
)  # fmt: skip
def test_what_is_no_host_is_not_told(host: str) -> None:
    told = server_asked("http", "", host, "192.0.2.1", 90)
    assert told == Server("192.0.2.1:90", "192.0.2.1", 90)

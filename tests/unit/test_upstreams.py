# SPDX-License-Identifier: Apache-2.0
"""Upstreams: what their hosts' names mean, and what the programs are told of them."""

from __future__ import annotations

import ctypes
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from samples import address

from otelbpf.errors import UsageError
from otelbpf.host.netns import find_netns
from otelbpf.policy.upstreams import Upstreams, resolve

HERE = find_netns(None)


def test_addresses_are_what_they_say() -> None:
    found = resolve((("192.0.2.7", 80), ("fd00::7", 81)), (9090,), HERE)
    assert found == Upstreams(((address("192.0.2.7"), 80), (address("fd00::7"), 81)), (9090,))


def test_a_name_is_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(host: str, *_: object, **__: object) -> list[tuple]:
        assert host == "both.example"
        return [
            (socket.AF_INET, 1, 6, "", ("192.0.2.7", 0)),
            (socket.AF_INET6, 1, 6, "", ("fd00::7", 0, 0, 0)),
            (socket.AF_INET6, 1, 6, "", ("fe80::1%eth0", 0, 0, 2)),
            (socket.AF_INET, 1, 6, "", ("192.0.2.7", 0)),
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert resolve((("both.example", 80),), (), HERE).endpoints == tuple(
        (address(text), 80) for text in ("192.0.2.7", "fd00::7", "fe80::1")
    )


@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70, "."])
def test_a_name_that_means_nothing_is_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    if host.endswith("invalid"):
        monkeypatch.setattr(socket, "getaddrinfo", fail)
    with pytest.raises(UsageError, match="cannot find the address of the upstream"):
        resolve(((host, 80),), (), HERE)


def test_without_upstreams_there_are_none() -> None:
    assert not Upstreams()
    assert Upstreams().macros() == {
        "CLIENTS": 0,
        "IS_UPSTREAM_PORT(p)": "(0)",
        "IS_UPSTREAM(p,a)": "(0)",
    }


@pytest.mark.impure
def test_what_the_programs_are_told(tmp_path: Path) -> None:
    """As a compiler understands it."""
    compiler = shutil.which("clang")
    assert compiler is not None
    endpoints = ((address("192.0.2.7"), 80), (address("fd00::7"), 80), (address("fd00::8"), 81))
    macros = Upstreams(endpoints, (9090,)).macros()
    assert macros["CLIENTS"] == 1
    source = tmp_path / "upstreams.c"
    source.write_text(
        "typedef unsigned long long u64;\n"
        "int is_port(int p) { return IS_UPSTREAM_PORT(p); }\n"
        "int is(int p, const u64 *address) { return IS_UPSTREAM(p, address); }\n"
    )
    library = tmp_path / "upstreams.so"
    defines = [f"-D{name}={value}" for name, value in macros.items()]
    subprocess.run([compiler, "-shared", "-fPIC", *defines, source, "-o", library], check=True)
    told = ctypes.CDLL(str(library))
    assert [port for port in range(1 << 16) if told.is_port(port)] == [80, 81, 9090]
    texts = ("192.0.2.7", "192.0.2.8", "fd00::7", "fd00::8", "::192.0.2.7")
    found = {
        (text, port)
        for text in texts
        for port in (80, 81, 82, 9090)
        if getattr(told, "is")(port, ctypes.create_string_buffer(packed(text), 16))
    }
    assert found == {
        ("192.0.2.7", 80),
        ("fd00::7", 80),
        ("fd00::8", 81),
        *((text, 9090) for text in texts),
    }


def packed(text: str) -> bytes:
    """`::192.0.2.7` is not IPv4-mapped."""
    return socket.inet_pton(socket.AF_INET6, text) if ":" in text else address(text)

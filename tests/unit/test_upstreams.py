# SPDX-License-Identifier: Apache-2.0
"""Upstreams: what their hosts' names mean, and what the programs are told of them."""

from __future__ import annotations

import socket

import pytest
from samples import address

from otelbpf.agent.settings import settings
from otelbpf.errors import UsageError
from otelbpf.host.netns import find_netns
from otelbpf.kernel.records import UpstreamPort
from otelbpf.kernel.settings import Part
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


def test_too_many_are_refused() -> None:
    hosts = tuple((f"10.0.{number // 256}.{number % 256}", 80) for number in range(4_097))
    assert len(resolve(hosts[:-1] * 2, (), HERE).endpoints) == 4_096
    with pytest.raises(UsageError, match="4097 addresses: there is room for 4096"):
        resolve(hosts, (), HERE)


def test_without_upstreams_there_are_none() -> None:
    assert not Upstreams()
    told = settings(1, (80,))
    assert told.parts == {Part.SERVERS}
    assert told.ports == {80}
    assert not told.upstream_ports
    assert not told.upstreams


def test_what_the_programs_are_told() -> None:
    """A port makes whoever has it an upstream only where it was asked for alone."""
    endpoints = ((address("192.0.2.7"), 80), (address("fd00::7"), 80), (address("fd00::8"), 81))
    told = settings(1, (81, 8080), upstreams=Upstreams(endpoints, (9090, 80)))
    assert told.parts == {Part.SERVERS, Part.CLIENTS}
    assert told.ports == {81, 8080}
    assert told.upstream_ports == {
        80: UpstreamPort.ANYWHERE,
        81: UpstreamPort.BY_ADDRESS,
        9090: UpstreamPort.ANYWHERE,
    }
    assert told.upstreams == set(endpoints)

# SPDX-License-Identifier: Apache-2.0
"""Which connections are measured: those of any number of ports and upstreams, and no others."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from lab import CLIENT_IPV4, SERVER_IPV4, SERVER_IPV6, Lab, laboratory
from messages import OK, request
from meter import SMALL, Meter, address

from otelbpf.agent.settings import settings
from otelbpf.kernel.btf import Btf
from otelbpf.kernel.hooks import choose
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.settings import Settings
from otelbpf.policy.upstreams import Upstreams

# The last one there is, one that has the same lower byte as others, and many more.
PORTS = (65_535, 9_216, *range(9_217, 9_280))
NOT_MEASURED = (9_280, 9_472, 511)


@contextlib.contextmanager
def measuring(lab: Lab, told: Settings, side: str) -> Iterator[Meter]:
    with Btf.of_kernel() as btf:
        choices = choose(btf)
        programs = Programs(btf, choices, SMALL, told)
    meter = Meter(lab, choices, programs, side)
    meter.let_another_process_be_the_agent()
    with contextlib.closing(meter), meter.attached():
        meter.begin()
        yield meter
        meter.end()


def ask(lab: Lab, host: str, port: int) -> None:
    lab.connect(host, port=port).exchange(request(target=f"/{port}"), OK)


@pytest.mark.parametrize(
    "count", [1, *(pytest.param(count, marks=pytest.mark.guest) for count in (2, 65))]
)
def test_any_number_of_ports(count: int) -> None:
    ports = PORTS[:count]
    assert len(set(ports)) == count
    with laboratory() as lab:
        told = settings(lab.server_netns.cookie, ports)
        with measuring(lab, told, "server") as meter:
            for port in (*NOT_MEASURED, *ports, *PORTS[count:][:3]):
                ask(lab, SERVER_IPV4, port)
            records = meter.records(count)
            assert records["local_port"].tolist() == list(ports)
            assert meter.losses() == {}


@pytest.mark.parametrize("count", [1, 9])
def test_any_number_of_upstreams(count: int) -> None:
    """By address, and one more by its port alone."""
    ports, anywhere = PORTS[:count], 9_300
    with laboratory() as lab:
        endpoints = tuple((address(SERVER_IPV4), port) for port in ports)
        told = settings(lab.client_netns.cookie, upstreams=Upstreams(endpoints, (anywhere,)))
        with measuring(lab, told, "client") as meter:
            for port in (*ports, *PORTS[count:][:3]):
                # At another address nobody was named.
                ask(lab, SERVER_IPV6, port)
                ask(lab, SERVER_IPV4, port)
            for host in (SERVER_IPV4, SERVER_IPV6):
                ask(lab, host, anywhere)
            records = meter.records(count + 2)
            assert records["peer_port"].tolist() == [*ports, anywhere, anywhere]
            assert {bytes(each) for each in records["peer_address"][:-1]} == {address(SERVER_IPV4)}
            assert bytes(records["peer_address"][-1]) == address(SERVER_IPV6)
            assert {bytes(each) for each in records["local_address"][:-1]} == {address(CLIENT_IPV4)}
            assert meter.losses() == {}

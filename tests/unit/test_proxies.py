# SPDX-License-Identifier: Apache-2.0
"""Which proxies are believed: what is written, and what the programs are told."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import address

from otelbpf.agent.settings import settings
from otelbpf.errors import UsageError
from otelbpf.kernel.records import ForwardedHeader
from otelbpf.policy.proxies import Forwarding, Header, network, packed


@pytest.mark.parametrize(
    ("text", "bits"),
    [
        ("192.0.2.7", 128), ("192.0.2.7/32", 128), ("10.0.0.0/8", 96 + 8), ("0.0.0.0/0", 96),
        ("fd00::7", 128), ("fd00::/8", 8), ("::/0", 0), ("10.0.0.0/255.255.255.0", 96 + 24),
    ],
)  # fmt: skip
def test_what_is_written(text: str, bits: int) -> None:
    of, mask = packed(network(text))
    assert of == address(text.partition("/")[0])
    assert int.from_bytes(mask, "big") == (1 << 128) - (1 << 128 - bits)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no address and no network"),
        ("balancer", "no address and no network: write 192.0.2.7, 10.0.0.0/8 or fd00::/8"),
        ("10.0.0.0/33", "no address and no network"),
        ("10.0.0/8", "no address and no network"),
        ("fe80::1%eth0", "no address and no network"),
        ("10.1.2.3/8", "write 10.0.0.0/8, or 10.1.2.3 for that address alone"),
        ("fd00::1/8", "write fd00::/8, or fd00::1 for that address alone"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        network(text)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_who_is_in_it(of: ipaddress.IPv4Address, bits: int, who: ipaddress.IPv4Address) -> None:
    found = ipaddress.ip_network((of, min(bits, of.max_prefixlen)), strict=False)
    start, mask = (int.from_bytes(part, "big") for part in packed(found))
    is_in = int.from_bytes(address(str(who)), "big") & mask == start
    if who.version == found.version:
        assert is_in == (who in found)


def test_what_the_programs_are_told() -> None:
    assert settings(1, (80,)).proxy_networks == ()
    networks = (network("10.0.0.0/8"), network("fd00::7"))
    assert settings(1, (80,), proxies=networks).proxy_networks == tuple(map(packed, networks))
    assert settings(1, (80,)).forwarded_header is ForwardedHeader.NONE
    told = settings(1, (80,), forwarding=Forwarding(networks))
    assert told.forwarded_header is ForwardedHeader.X_FORWARDED_FOR
    told = settings(1, (80,), forwarding=Forwarding(networks, Header.FORWARDED))
    assert told.forwarded_header is ForwardedHeader.FORWARDED
    told = settings(1, (80,), forwarding=Forwarding((), Header.FORWARDED))
    assert told.forwarded_header is ForwardedHeader.NONE

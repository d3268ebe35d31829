# SPDX-License-Identifier: Apache-2.0
"""Which address a client has reached of a server that only says that it listens on all."""

from __future__ import annotations

import json
import logging
import socket
import subprocess
from typing import Any

import pytest
from opentelemetry import propagate
from opentelemetry.trace import SpanKind
from plugin_lab import Kernel, Spans, ids, kernel, plugin, sleeping, traceparent

from otelbpf_plugin import OtelbpfInstrumentor, addresses, marker
from otelbpf_plugin.addresses import MOST_ADDRESSES
from otelbpf_plugin.connection import ANY_ADDRESS, IPV4, Ends

__all__ = ["kernel", "plugin", "sleeping"]  # fixtures

PEER, PEER_PORT, PORT = "192.0.2.1", 40_000, 8080
OURS = ("127.0.0.1", "192.0.2.2", "198.51.100.2", "::1", "2001:db8::2", "fe80::2")


def packed(address: str) -> bytes:
    if ":" in address:
        return socket.inet_pton(socket.AF_INET6, address)
    return IPV4 + socket.inet_pton(socket.AF_INET, address)


@pytest.fixture(autouse=True)
def ours(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """This machine's addresses."""
    made = [packed(each) for each in OURS]
    monkeypatch.setattr(addresses, "_listed", lambda: made)
    monkeypatch.setattr(addresses, "_kept", (0.0, frozenset()))
    return made


def scope(peer: str = PEER, number: int = 0) -> dict[str, Any]:
    """As granian makes it."""
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1",
        "client": (peer, str(PEER_PORT)), "server": ("::", str(PORT)),
        "headers": [(b"traceparent", traceparent(number).encode())],
    }  # fmt: skip


def serve(made: Spans, peer: str = PEER) -> bool:
    """A request; has its span the kernel's above it?"""
    made.tracer.start_span("GET /", propagate.extract(scope(peer)), SpanKind.SERVER).end()
    return bool(ids(made.ended[-1])[1])


@pytest.mark.parametrize(("peer", "local", "asked"), [
    (PEER, "192.0.2.2", OURS[:3]), (f"::ffff:{PEER}", "192.0.2.2", OURS[:3]),
    ("127.0.0.1", "127.0.0.1", OURS[:3]), ("2001:db8::1", "2001:db8::2", OURS[3:]),
    ("fe80::1", "fe80::2", OURS[3:]), ("::1", "::1", OURS[3:]),
])  # fmt: skip
def test_the_kernel_knows_which_one_it_is(
    kernel: Kernel, plugin: OtelbpfInstrumentor, peer: str, local: str, asked: tuple[str, ...]
) -> None:
    kernel.known = {(packed(peer), packed(local), PEER_PORT, PORT)}
    made = Spans()
    assert serve(made, peer)
    told = [marker.MARK.unpack(each.mark)[3:7] for each in kernel.told]
    assert told == [(packed(peer), packed(local), PEER_PORT, PORT)] * 2  # its start and its end
    assert {each[1] for each in kernel.asked_of} == set(map(packed, asked))
    assert len(kernel.asked_of) == len(asked)


def test_a_client_s_port_that_is_connected_to_two_addresses(
    kernel: Kernel, plugin: OtelbpfInstrumentor, caplog: pytest.LogCaptureFixture
) -> None:
    """Whose request it is nobody knows, however often it asks: that is told once."""
    kernel.known = {(packed(PEER), packed(each), PEER_PORT, PORT) for each in OURS[1:3]}
    kernel.answer = marker.UNKNOWN_REQUEST
    made = Spans()
    for _ in range(23):
        assert not serve(made)
    locals_ = {marker.MARK.unpack(told.mark)[4] for told in kernel.told}
    assert locals_ == {ANY_ADDRESS}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "uses the same port for two of them" in caplog.text


def test_a_connection_that_the_kernel_does_not_know(
    kernel: Kernel, plugin: OtelbpfInstrumentor, caplog: pytest.LogCaptureFixture
) -> None:
    """It is told all the same, and so counts it."""
    kernel.answer = marker.UNKNOWN_REQUEST
    assert not serve(Spans())
    (told,) = kernel.told
    assert marker.MARK.unpack(told.mark)[3:7] == (packed(PEER), ANY_ADDRESS, PEER_PORT, PORT)
    assert not caplog.records


def test_too_many_addresses_are_not_asked_about(
    kernel: Kernel,
    plugin: OtelbpfInstrumentor,
    ours: list[bytes],
    caplog: pytest.LogCaptureFixture,
) -> None:
    ours += [packed(f"203.0.113.{number}") for number in range(MOST_ADDRESSES)]
    kernel.answer = marker.UNKNOWN_REQUEST
    made = Spans()
    for _ in range(23):
        assert not serve(made)
    assert not kernel.asked_of
    assert len(caplog.records) == 1
    assert f"more than {MOST_ADDRESSES}; have it listen on one" in caplog.text


def test_an_address_that_comes_later(
    kernel: Kernel,
    plugin: OtelbpfInstrumentor,
    ours: list[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(addresses, "monotonic", lambda: clock[0])
    ends = Ends(packed(PEER), ANY_ADDRESS, PEER_PORT, PORT)
    new = packed("203.0.113.2")
    kernel.known = {(packed(PEER), new, PEER_PORT, PORT)}
    assert addresses.reached_by(ends) == ANY_ADDRESS
    ours.append(new)
    clock[0] += addresses.LISTED_S - 0.001
    assert addresses.reached_by(ends) == ANY_ADDRESS
    clock[0] += 0.001
    assert addresses.reached_by(ends) == new


@pytest.mark.impure
def test_this_machine_s_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `ip address` lists them."""
    monkeypatch.undo()
    listed = json.loads(subprocess.check_output(["ip", "-json", "address"], timeout=60))
    expected = {
        packed(each["local"])
        for interface in listed for each in interface["addr_info"] if "local" in each
    }  # fmt: skip
    assert packed("127.0.0.1") in expected
    assert set(addresses._listed()) == expected

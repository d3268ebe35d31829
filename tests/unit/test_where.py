# SPDX-License-Identifier: Apache-2.0
"""Namespaces and interfaces that are not there, or not such; needs no root."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from otelbpf.errors import KernelError, UsageError
from otelbpf.host import netns as netns_module
from otelbpf.host.interfaces import find_interfaces
from otelbpf.host.netns import Netns, find_netns

T = TypeVar("T")


class OwnNetns(Netns):
    """The test's own namespace, which it need not enter."""

    def run(self, function: Callable[[], T]) -> T:
        return function()


HERE = OwnNetns("", Path("/proc/self/ns/net"))


def test_the_agents_own_namespace() -> None:
    assert find_netns(None) == Netns("", Path("/proc/self/ns/net"))


def test_a_namespace_by_its_path() -> None:
    path = f"/proc/{os.getpid()}/ns/net"
    assert find_netns(path) == Netns(path, Path(path))


def test_a_namespace_by_its_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "blue").symlink_to("/proc/self/ns/net")
    monkeypatch.setattr(netns_module, "_RUN_NETNS", tmp_path)
    assert find_netns("blue") == Netns("blue", tmp_path / "blue")


@pytest.mark.parametrize("name", ["blue", "/proc/0/ns/net", "./blue"])
def test_there_is_no_such_namespace(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(netns_module, "_RUN_NETNS", tmp_path)
    with pytest.raises(UsageError) as refusal:
        find_netns(name)
    text = str(refusal.value)
    assert text.startswith(f"no network namespace {name!r} (")
    assert "No such file or directory" in text
    assert "`ip netns list`" in text
    assert isinstance(refusal.value.__cause__, OSError)


@pytest.mark.parametrize("kind", ["mnt", "uts", "pid", "user"])
def test_another_kind_of_namespace(kind: str) -> None:
    path = f"/proc/self/ns/{kind}"
    with pytest.raises(UsageError, match=rf"^{path} is not a network namespace: "):
        find_netns(path)


def test_a_file_that_is_no_namespace(tmp_path: Path) -> None:
    path = tmp_path / "net"
    path.touch()
    with pytest.raises(UsageError, match=rf"^{path} is not a network namespace: give a name"):
        find_netns(str(path))
    with pytest.raises(UsageError, match=r"is not a network namespace"):
        find_netns(str(tmp_path))


def test_the_name_must_not_be_empty(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(netns_module, "_RUN_NETNS", tmp_path)
    with pytest.raises(UsageError, match=r"is not a network namespace"):
        find_netns("")


def test_what_a_namespace_raises_comes_out(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="gone"):
        Netns("gone", tmp_path / "gone").run(lambda: None)


def test_interfaces_by_their_index() -> None:
    assert find_interfaces(("lo",), HERE) == {"lo": socket.if_nametoindex("lo")}
    assert find_interfaces((), HERE) == {}


@pytest.mark.parametrize("name", ["nope0", "", "a-name-that-is-too-long"])
def test_there_is_no_such_interface(name: str) -> None:
    with pytest.raises(UsageError) as refusal:
        find_interfaces(("lo", name), HERE)
    present = ", ".join(known for _, known in socket.if_nameindex())
    assert str(refusal.value) == f"no network interface {name!r}: it has {present}"
    assert isinstance(refusal.value.__cause__, OSError)


def test_the_namespace_is_named() -> None:
    with pytest.raises(UsageError, match=r"^no network interface 'nope0' in .* blue"):
        find_interfaces(("nope0",), OwnNetns("blue", HERE.path))


@pytest.mark.parametrize(("kind", "usable"), [(1, True), (772, True), (65534, False), (778, False)])
def test_only_with_an_ethernet_header(
    monkeypatch: pytest.MonkeyPatch, kind: int, usable: bool
) -> None:
    """A tunnel has none (ARPHRD_NONE), nor has GRE."""

    def ioctl(_: object, request: int, argument: bytes) -> bytes:
        assert request == 0x8927  # SIOCGIFHWADDR
        assert argument.rstrip(b"\0") == b"lo"
        return struct.pack("16sH238x", b"lo", kind)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)
    if usable:
        assert "lo" in find_interfaces(("lo",), HERE)
    else:
        with pytest.raises(UsageError, match=rf"lo has no Ethernet header .*kind is {kind}"):
            find_interfaces(("lo",), HERE)

# SPDX-License-Identifier: Apache-2.0
"""Units and containers by the cgroups that processes are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from otelbpf.host import cgroups as cgroups_module
from otelbpf.host.cgroups import Cgroups, Paths, container_id, paths_of, service_unit

ID = "3f" * 32


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/shop.service", "shop"),
        ("/shop.service", "shop"),
        ("/system.slice/system-shop.slice/shop@7.service", "shop@7"),
        ("/user.slice/user-7.slice/user@7.service/app.slice/shop.service", "shop"),
        ("/../../system.slice/shop.service", "shop"),  # out of the agent's cgroup namespace
        ("/system.slice/_cgroup.service", "cgroup"),
        ("/user.slice/user-0.slice/session-3.scope", ""),
        ("/system.slice/run-r12.scope", ""),
        ("/system.slice/shop.service/worker", ""),
        ("/system.slice/shop.service/inner.scope", ""),
        ("/user.slice/user-7.slice/user@7.service/init.scope", ""),
        (f"/system.slice/docker-{ID}.scope", ""),
        (f"/system.slice/docker-{ID}.scope/system.slice/shop.service", ""),
        (f"/docker/{ID}/system.slice/shop.service", ""),
        (f"/kubepods.slice/{ID}/shop.service", ""),
        ("/lxc.payload.web/system.slice/shop.service", ""),
        ("/machine.slice/machine-web.scope/payload/system.slice/shop.service", ""),
        ("/system.slice/docker.service/x/shop.service", ""),
        ("/system.slice/shop.socket", ""),
        ("/", ""),
        ("", ""),
    ],
)
def test_service_units(path: str, unit: str) -> None:
    assert service_unit(path) == unit


@pytest.mark.parametrize(
    ("path", "container"),
    [
        (f"/system.slice/docker-{ID}.scope", ID),
        (f"/docker/{ID}", ID),
        (f"/docker/{ID}/system.slice/shop.service", ID),
        (f"/docker/{'a0' * 32}/docker/{ID}", ID),
        (f"/kubepods.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope", ID),
        (f"/system.slice/containerd.service/kubepods-pod1_2.slice:cri-containerd:{ID}", ID),
        (f"/kubepods/burstable/pod1-2/{ID}", ID),
        (f"/machine.slice/libpod-{ID}.scope/container", ID),
        (f"/kubepods.slice/crio-{ID}.scope", ID),
        (f"/ecs/{'0b' * 16}/{'0b' * 16}-1234567890", f"{'0b' * 16}-1234567890"),
        (f"/machine.slice/libpod-conmon-{ID}.scope", ""),  # it minds one, from outside
        ("/kubepods.slice/kubepods-podd5b9c3d2_1f2e_4a3b_8c7d_6e5f4a3b2c1d.slice", ""),
        (f"/{ID}0", ""),
        ("/system.slice/shop.service", ""),
        ("", ""),
    ],
)
def test_containers(path: str, container: str) -> None:
    assert container_id(path) == container


@pytest.mark.parametrize(
    ("lines", "paths"),
    [
        ("0::/shop.service\n", Paths("/shop.service", "/shop.service")),
        ("0::/shop.service (deleted)\n", Paths("/shop.service", "/shop.service")),
        ("0::/a:b\n", Paths("/a:b", "/a:b")),
        # systemd has a hierarchy of its own, and cgroup2 is there for others.
        ("9:pids:/x\n1:name=systemd:/shop.service\n0::/\n", Paths("/", "/shop.service")),
        ("9:pids:/x\n1:name=systemd:/shop.service\n", Paths("", "/shop.service")),
        # It has both.
        (
            "1:name=systemd:/shop.service\n0::/shop.service\n",
            Paths("/shop.service", "/shop.service"),
        ),
        ("9:pids:/x\n0::/\n", Paths("/", "/")),
        ("", Paths("", "")),
    ],
)
def test_where_a_process_is(lines: str, paths: Paths) -> None:
    assert paths_of(lines) == paths


class Hierarchy:
    """A directory with cgroups in it, and a clock."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.now_s = 100.0
        monkeypatch.setattr(cgroups_module.time, "monotonic", lambda: self.now_s)

    def make(self, path: str) -> int:
        made = self.root / path
        made.mkdir(parents=True)
        (made / "cgroup.procs").touch()
        return made.stat().st_ino


@pytest.fixture
def hierarchy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hierarchy:
    return Hierarchy(tmp_path, monkeypatch)


def test_a_cgroup_is_found_by_its_number(hierarchy: Hierarchy) -> None:
    number = hierarchy.make("system.slice/shop.service")
    hierarchy.make("system.slice/bank.service/inner")
    cgroups = Cgroups(hierarchy.root)
    assert cgroups.path(number) == "/system.slice/shop.service"
    assert cgroups.path(1 << 60) == ""


def test_it_is_found_when_it_is_gone_if_it_was_known(hierarchy: Hierarchy) -> None:
    number = hierarchy.make("shop.service")
    cgroups = Cgroups(hierarchy.root)
    assert cgroups.number("/shop.service") == number
    cgroups.learn(number, "/shop.service")
    (hierarchy.root / "shop.service").rename(hierarchy.root / "other")
    assert cgroups.path(number) == "/shop.service"


def test_the_hierarchy_is_looked_through_once_a_second(hierarchy: Hierarchy) -> None:
    cgroups = Cgroups(hierarchy.root)
    assert cgroups.path(1 << 60) == ""
    number = hierarchy.make("late.service")
    assert cgroups.path(number) == ""
    hierarchy.now_s += 1.1
    assert cgroups.path(number) == "/late.service"


def test_a_service_that_is_started_again_has_another_cgroup(hierarchy: Hierarchy) -> None:
    """The new one is known though none of its processes was looked at: they may end at once."""
    first = hierarchy.make("shop.service")
    cgroups = Cgroups(hierarchy.root)
    cgroups.learn(first, "/shop.service")
    assert cgroups.path(1 << 60) == ""  # which has looked through all of it for this second
    (hierarchy.root / "shop.service").rename(hierarchy.root / "before")
    cgroups.refresh()  # there is none just now
    number = hierarchy.make("shop.service")
    cgroups.refresh()
    (hierarchy.root / "shop.service").rename(hierarchy.root / "again")
    assert cgroups.path(number) == "/shop.service"


def test_a_path_that_begins_elsewhere_is_not_taken_for_one_from_here(hierarchy: Hierarchy) -> None:
    """As in another namespace of cgroups."""
    number = hierarchy.make("shop.service")
    cgroups = Cgroups(hierarchy.root)
    assert cgroups.path(1 << 60) == ""
    for path in ("/shop.service", "/../shop.service"):
        cgroups.learn(number + 1, path)
    assert cgroups.path(number + 1) == ""
    cgroups.refresh()
    assert cgroups.number("/../../no/shop.service") == 0


def test_without_cgroup2_all_are_in_the_topmost_one() -> None:
    """As the kernel numbers it."""
    cgroups = Cgroups(None)
    assert cgroups.number("/shop.service") == 1
    cgroups.learn(1, "/shop.service")
    assert cgroups.path(1) == cgroups.path(7) == ""
    cgroups.refresh()

# SPDX-License-Identifier: Apache-2.0
"""Units by the cgroups that processes are in."""

from __future__ import annotations

from pathlib import Path

import pytest

from otelbpf.host import cgroups as cgroups_module
from otelbpf.host.cgroups import Cgroups, paths_of, service_unit

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
    ("lines", "unified", "systemds", "others"),
    [
        ("0::/shop.service\n", "/shop.service", "/shop.service", ()),
        ("0::/shop.service (deleted)\n", "/shop.service", "/shop.service", ()),
        ("0::/a:b\n", "/a:b", "/a:b", ()),
        # systemd has a hierarchy of its own, and cgroup2 is there for others.
        ("9:pids:/x\n1:name=systemd:/shop.service\n0::/\n", "/", "/shop.service", ("/x",)),
        ("9:pids:/x\n1:name=systemd:/shop.service\n", "", "/shop.service", ("/x",)),
        # It has both.
        ("1:name=systemd:/shop.service\n0::/shop.service\n", "/shop.service", "/shop.service", ()),
        ("9:pids:/x\n0::/\n", "/", "/", ("/x",)),
        ("", "", "", ()),
    ],
)
def test_where_a_process_is(
    lines: str, unified: str, systemds: str, others: tuple[str, ...]
) -> None:
    found = paths_of(lines)
    assert (found.unified, found.systemds) == (unified, systemds)
    assert {*found.all, ""} == {unified, systemds, *others, ""}
    assert len(set(found.all)) == len(found.all)


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

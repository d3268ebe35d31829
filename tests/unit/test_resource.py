# SPDX-License-Identifier: Apache-2.0
"""The resource of the serving process, and where its name comes from."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.semconv._incubating.attributes import (
    host_attributes,
    os_attributes,
    process_attributes,
    service_attributes,
)

from otelbpf import processes as processes_module
from otelbpf import resource
from otelbpf.resource import Resources

NOBODY = 1 << 22  # above every pid
NAME = service_attributes.SERVICE_NAME


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    return monkeypatch


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A /proc in which pid 11 is nginx, 12 python3.11, and 13 a program that was replaced."""
    for pid, executable in (
        (11, "/usr/sbin/nginx"), (12, "/usr/bin/python3.11"), (13, "/opt/shop (deleted)"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "exe").symlink_to(executable)
    monkeypatch.setattr(processes_module, "_PROC", tmp_path)
    return tmp_path


def name_of(pid: int, option: str | None = None) -> object:
    return Resources(option).of_process(pid).attributes[NAME]


def test_the_option_goes_before_all(environment: pytest.MonkeyPatch, processes: Path) -> None:
    environment.setenv("OTEL_SERVICE_NAME", "by-variable")
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attributes")
    assert name_of(11, "by-option") == "by-option"


def test_the_variable_goes_before_the_attributes(
    environment: pytest.MonkeyPatch, processes: Path
) -> None:
    environment.setenv("OTEL_SERVICE_NAME", "by-variable")
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attributes")
    assert name_of(11) == "by-variable"


def test_the_attributes_go_before_the_process(
    environment: pytest.MonkeyPatch, processes: Path
) -> None:
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attributes,zone=b")
    found = Resources(None).of_process(11).attributes
    assert found[NAME] == "by-attributes"
    assert found["zone"] == "b"


@pytest.mark.parametrize(("pid", "name"), [(11, "nginx"), (12, "python3.11"), (13, "shop")])
def test_the_process_gives_its_name(processes: Path, pid: int, name: str) -> None:
    found = Resources(None).of_process(pid).attributes
    assert found[NAME] == name
    assert found[process_attributes.PROCESS_EXECUTABLE_NAME] == name
    assert found[process_attributes.PROCESS_PID] == pid


@pytest.mark.parametrize("pid", [0, NOBODY])
def test_nobody_known(processes: Path, pid: int) -> None:
    found = Resources(None).of_process(pid).attributes
    assert found[NAME] == "unknown_service"
    assert process_attributes.PROCESS_EXECUTABLE_NAME not in found
    assert (process_attributes.PROCESS_PID in found) == bool(pid)


@pytest.mark.parametrize("pid", [0, NOBODY])
def test_nobody_known_after_somebody(processes: Path, pid: int) -> None:
    resources = Resources(None)
    resources.of_process(11)
    found = resources.of_process(pid).attributes
    assert found[NAME] == "nginx"
    assert process_attributes.PROCESS_EXECUTABLE_NAME not in found


def test_a_process_is_looked_at_once(processes: Path) -> None:
    resources = Resources(None)
    first = resources.of_process(11)
    (processes / "11/exe").unlink()
    assert resources.of_process(11) is first
    assert Resources(None).of_process(11).attributes[NAME] == "unknown_service"


def test_this_process() -> None:
    found = Resources(None).of_process(os.getpid()).attributes
    assert found[NAME] == Path(f"/proc/{os.getpid()}/exe").resolve().name


def test_the_machine(processes: Path) -> None:
    found = Resources(None).of_process(11).attributes
    assert found[host_attributes.HOST_NAME] == socket.gethostname()
    assert found[os_attributes.OS_TYPE] == os_attributes.OsTypeValues.LINUX.value
    assert found[os_attributes.OS_VERSION] == platform.release()
    assert found["otelbpf.kernel.release"] == platform.release()


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, machine: str, arch: str) -> None:
    monkeypatch.setattr(resource.platform, "machine", lambda: machine)
    assert Resources("s").of_process(0).attributes[host_attributes.HOST_ARCH] == arch


def test_the_hash_is_worked_out_once(
    monkeypatch: pytest.MonkeyPatch, processes: Path
) -> None:
    calls = []
    plain = Resource.__hash__
    monkeypatch.setattr(Resource, "__hash__", lambda self: calls.append(1) or plain(self))
    one = Resources(None).of_process(11)
    assert len({hash(one) for _ in range(23)}) == 1
    assert len(calls) == 1
    assert hash(one) == plain(one)


def test_equal_resources_are_one_key(processes: Path) -> None:
    one, same = Resources(None).of_process(11), Resources(None).of_process(11)
    other = Resources(None).of_process(12)
    assert one is not same
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other, Resource(one.attributes)}) == 2


def test_a_pid_used_again_is_another_process() -> None:
    resources = Resources(None)
    with subprocess.Popen(["sleep", "60"]) as first:
        assert resources.of_process(first.pid).attributes["process.executable.name"] == "sleep"
        resources.forget_gone()
        assert resources.of_process(first.pid) is resources.of_process(first.pid)
        first.kill()
    resources.forget_gone()
    assert "process.executable.name" not in resources.of_process(first.pid).attributes


def test_a_service_is_no_process_and_an_instance(
    environment: pytest.MonkeyPatch, processes: Path
) -> None:
    """The same one each time in this namespace of this host; collectors would mix them up."""
    instance = service_attributes.SERVICE_INSTANCE_ID
    here, there = Resources(None, "1"), Resources(None, "2")
    nginx = here.of_service(11)
    assert not {key for key in nginx.attributes if key.startswith("process.")}
    assert nginx.attributes[NAME] == "nginx"
    assert Resources(None, "1").of_service(11).attributes[instance] == nginx.attributes[instance]
    others = {
        each.attributes[instance]
        for each in (nginx, there.of_service(11), here.of_service(12), here.of_agent())
    }
    assert len(others) == 4
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=till-7")
    assert Resources(None).of_service(11).attributes[instance] == "till-7"

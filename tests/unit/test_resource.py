# SPDX-License-Identifier: Apache-2.0
"""The resource of who read a request or wrote it, and where its service's name comes from."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.semconv._incubating.attributes import (
    container_attributes,
    host_attributes,
    k8s_attributes,
    os_attributes,
    process_attributes,
    service_attributes,
)
from proc import Proc, instead_of_proc

from otelbpf.host import resource
from otelbpf.host.processes import NOBODY, Process, look_at
from otelbpf.host.resource import Resources

NAME = service_attributes.SERVICE_NAME
INSTANCE = service_attributes.SERVICE_INSTANCE_ID
PID = process_attributes.PROCESS_PID
EXECUTABLE = process_attributes.PROCESS_EXECUTABLE_NAME
CONTAINER = container_attributes.CONTAINER_ID
RUNTIME = container_attributes.CONTAINER_RUNTIME_NAME
POD = k8s_attributes.K8S_POD_UID
FALLBACK = "otelbpf.service.name.fallback"
ID = "3f" * 32
UID = "d5b9c3d2-1f2e-4a3b-8c7d-6e5f4a3b2c1d"
IN_POD = f"0::/kubepods.slice/kubepods-pod{UID.replace('-', '_')}.slice/cri-containerd-{ID}.scope\n"
PORT = 8080
# Services' names, in the order in which they count; the last one is a program's own.
BY_VARIABLE = {"OTEL_SERVICE_NAME": "by-variable"}
BY_ATTRIBUTES = {"OTEL_RESOURCE_ATTRIBUTES": "zone=b,service.name=by-attributes"}
BY_UNIT = "0::/system.slice/by-unit.service\n"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    return monkeypatch


@pytest.fixture
def proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Proc]:
    """A /proc, and a cgroup2 hierarchy in `cgroup`."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "cgroup").mkdir()
    monkeypatch.setattr(resource, "cgroup_directory", lambda: tmp_path / "cgroup")
    with instead_of_proc(tmp_path / "proc", monkeypatch) as made:
        yield made


class Listeners:
    """Who listens on PORT, and how often it was asked for."""

    def __init__(self, *pids: int) -> None:
        self.pids = frozenset(pids)

    def of(self, port: int) -> frozenset[int]:
        return self.pids if port == PORT else frozenset()


def name_of(process: Process, option: str | None = None) -> object:
    return Resources(option).of(process).resource.attributes[NAME]


# ---- of a process that runs ----


def test_what_counts_before_what(proc: Proc) -> None:
    both = BY_VARIABLE | BY_ATTRIBUTES
    process = proc.add(11, "/srv/shop", environment=both, cgroup=BY_UNIT)
    assert name_of(process, "by-option") == "by-option"
    assert name_of(process) == "by-variable"
    process = proc.add(11, "/srv/shop", environment=BY_ATTRIBUTES, cgroup=BY_UNIT)
    assert name_of(process) == "by-attributes"
    process = proc.add(11, "/srv/shop", cgroup=BY_UNIT)
    assert name_of(process) == "by-unit"
    process = proc.add(11, "/srv/shop")
    assert name_of(process) == "shop"


@pytest.mark.parametrize(
    ("executable", "arguments", "name"),
    [
        ("/usr/sbin/nginx", ("nginx: worker process",), "nginx"),
        ("/opt/shop (deleted)", ("/opt/shop",), "shop"),
        ("/usr/bin/python3.11", ("python3", "-u", "/srv/serve.py"), "serve.py"),
        ("/usr/bin/python3.11", ("python3", "-m", "http.server"), "http.server"),
        ("/usr/bin/python3.11", ("python3", "-c", "serve()"), "unknown_service:python3.11"),
        ("/usr/bin/python3.11", (), "unknown_service:python3.11"),
    ],
)
def test_a_program_gives_its_name(
    proc: Proc, executable: str, arguments: tuple[str, ...], name: str
) -> None:
    process = proc.add(11, executable, arguments)
    named = Resources(None).of(process)
    assert named.resource.attributes[NAME] == name
    assert named.resource.attributes[EXECUTABLE] == Path(executable.split()[0]).name
    assert named.resource.attributes[PID] == 11
    assert named.is_certain


@pytest.mark.parametrize(
    "variables", [{"OTEL_SERVICE_NAME": ""}, {"OTEL_RESOURCE_ATTRIBUTES": ","}]
)
def test_an_empty_variable_says_nothing(proc: Proc, variables: dict[str, str]) -> None:
    assert name_of(proc.add(11, "/srv/shop", environment=variables)) == "shop"


@pytest.mark.parametrize(
    "text",
    ["service.name=a%2Fb,zone=c", " service.name = a ,zone", "a,b=,service.name=x=y", "=v,b=1,b=2"],
)
def test_what_a_process_says_of_itself_is_what_its_sdk_says(
    environment: pytest.MonkeyPatch, proc: Proc, text: str
) -> None:
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", text)
    said = dict(OTELResourceDetector().detect().attributes)
    environment.delenv("OTEL_RESOURCE_ATTRIBUTES")
    process = proc.add(11, "/srv/shop", environment={"OTEL_RESOURCE_ATTRIBUTES": text})
    found = Resources(None).of(process).resource.attributes
    said.pop("", None)  # which the SDK drops later
    assert said and {key: found[key] for key in said} == said


def test_a_container_has_an_id_and_gives_no_name(proc: Proc) -> None:
    process = proc.add(11, "/srv/shop", cgroup=f"0::/docker/{ID}/system.slice/inner.service\n")
    found = Resources(None).of(process).resource.attributes
    assert (found[NAME], found[CONTAINER]) == ("shop", ID)
    process = proc.add(12, "/srv/shop", cgroup=f"3:pids:/docker/{ID}\n1:name=systemd:/x\n0::/\n")
    assert Resources(None).of(process).resource.attributes[CONTAINER] == ID
    found = Resources(None).of(proc.add(13, "/srv/shop")).resource.attributes
    assert not {CONTAINER, RUNTIME, POD} & found.keys()


def test_who_runs_in_a_container_and_a_pod(proc: Proc) -> None:
    for cgroup, runtime, pod in (
        (f"0::/docker/{ID}\n", "docker", None),
        (f"0::/own/{ID}\n", None, None),
        (f"4:pids:/\n1:name=systemd:/machine.slice/libpod-{ID}.scope\n0::/\n", "podman", None),
        (IN_POD, "containerd", UID),
    ):
        found = Resources(None).of(proc.add(11, "/srv/shop", cgroup=cgroup)).resource.attributes
        assert (found[CONTAINER], found.get(RUNTIME), found.get(POD)) == (ID, runtime, pod)


@pytest.mark.parametrize(
    ("variables", "cgroup", "option", "is_fallback"),
    [
        ({}, "0::/\n", None, True),
        ({}, IN_POD, None, True),
        (BY_VARIABLE, IN_POD, None, False),
        (BY_ATTRIBUTES, IN_POD, None, False),
        ({}, BY_UNIT, None, False),
        ({}, IN_POD, "by-option", False),
    ],
)
def test_a_name_that_nobody_has_given_says_so(
    proc: Proc, variables: dict[str, str], cgroup: str, option: str | None, is_fallback: bool
) -> None:
    resources = Resources(option)
    of = resources.of(proc.add(11, "/srv/shop", environment=variables, cgroup=cgroup)).resource
    for each in (of, resources.of_service(of)):
        assert each.attributes.get(FALLBACK) is (True if is_fallback else None)
    for of in (resources.of(NOBODY).resource, resources.of_unknown()):
        assert of.attributes.get(FALLBACK) is (None if option else True)


def test_what_was_gone_says_so_too(proc: Proc) -> None:
    unit = proc.directory.parent / "cgroup/by-unit.service"
    unit.mkdir()
    for number, is_fallback in ((unit.stat().st_ino, None), (1, True)):
        gone = Process(11, 5_000_000_000, number, 77, b"serve")
        assert Resources(None).of(gone).resource.attributes.get(FALLBACK) is is_fallback


def test_who_may_not_be_looked_at_has_its_comm_or_its_unit(proc: Proc) -> None:
    """As without CAP_SYS_PTRACE."""
    assert name_of(proc.add(11, comm=b"shop")) == "shop"
    assert name_of(proc.add(12, comm=b"python3")) == "unknown_service"
    assert name_of(proc.add(15, "", ("python3", "/srv/serve.py"), comm=b"python3")) == "serve.py"
    assert name_of(proc.add(13, comm=b"python3", cgroup=BY_UNIT)) == "by-unit"
    assert Resources(None).of(proc.add(14, comm=b"shop")).is_certain


def test_a_process_is_looked_at_once(proc: Proc) -> None:
    process = proc.add(11, "/srv/shop")
    resources = Resources(None)
    first = resources.of(process)
    proc.remove(11)
    assert resources.of(process) is first
    assert name_of(process._replace(comm=b"python3")) == "unknown_service"


def test_this_process() -> None:
    running = look_at(os.getpid(), ())
    assert running is not None
    process = Process(os.getpid(), running.start_ticks * 10_000_000, 0, running.stack, running.comm)
    found = Resources(None).of(process).resource.attributes
    assert found[EXECUTABLE] == Path(f"/proc/{os.getpid()}/exe").resolve().name
    assert NAME in found


# ---- never another's ----


@pytest.mark.parametrize(
    ("comm", "name"),
    [
        (b"shop", "shop"),
        (b"serve.py", "serve.py"),
        (b"python3", "unknown_service"),
        (b"MainThread", "unknown_service"),
        (b"java", "unknown_service"),
        (b"", "unknown_service"),
        (b"\xff", "\\xff"),
    ],
)
def test_who_is_gone_has_what_the_kernel_knew(proc: Proc, comm: bytes, name: str) -> None:
    """Whoever was looked at before, and whoever has its pid now."""
    gone = Process(11, 5_000_000_000, 1, 77, comm)
    for _ in range(2):
        resources = Resources(None)
        resources.of(proc.add(12, "/usr/sbin/nginx"))
        named = resources.of(gone)
        assert named.resource.attributes[NAME] == name
        assert named.resource.attributes[PID] == 11
        assert EXECUTABLE not in named.resource.attributes
        assert not named.is_certain
        proc.add(11, "/usr/sbin/nginx", environment=BY_VARIABLE)


def test_who_has_become_another_program_is_not_that_one(proc: Proc) -> None:
    before = proc.add(11, "/srv/shop")
    after = proc.add(11, "/srv/bank", environment=BY_VARIABLE)
    resources = Resources(None)
    assert resources.of(before).resource.attributes[NAME] == "shop"
    assert resources.of(after).resource.attributes[NAME] == "by-variable"


def test_who_is_gone_was_of_the_unit_that_its_cgroup_is_of(proc: Proc) -> None:
    root = proc.directory.parent / "cgroup"
    for number, path in enumerate(
        ["by-unit.service", f"docker-{ID}.scope", f"docker/{ID}/x.service"]
    ):
        (root / path).mkdir(parents=True)
        gone = Process(11 + number, 5_000_000_000, (root / path).stat().st_ino, 77, b"serve")
        found = Resources(None).of(gone).resource.attributes
        assert found[NAME] == ("serve" if number else "by-unit")
        assert found.get(CONTAINER) == (ID if number else None)


def test_a_fork_is_what_it_was_forked_from(proc: Proc) -> None:
    """Though it is gone, and the other one is, too: a program's stack is its own."""
    resources = Resources(None)
    parent = proc.add(
        11, "/usr/bin/python3.11", ("python3", "serve.py"), BY_ATTRIBUTES, cgroup_id=5
    )
    assert resources.of(parent).is_certain
    proc.remove(11)
    child = parent._replace(pid=12, start_boottime_ns=parent.start_boottime_ns + 1)
    named = resources.of(child)
    assert named.is_certain
    assert named.resource.attributes[NAME] == "by-attributes"
    assert named.resource.attributes[EXECUTABLE] == "python3.11"
    assert named.resource.attributes["zone"] == "b"
    assert named.resource.attributes[PID] == 12
    for other in (child._replace(pid=13, stack=77), child._replace(pid=14, cgroup_id=6)):
        assert resources.of(other).resource.attributes[NAME] == "unknown_service"


@pytest.mark.parametrize("randomize", ["2", "0"])
def test_where_all_stacks_are_the_same_none_tells_of_a_fork(proc: Proc, randomize: str) -> None:
    proc.randomize(randomize)
    resources = Resources(None)
    parent = proc.add(11, "/usr/bin/python3.11", ("python3", "serve.py"), stack=77)
    assert resources.of(parent).resource.attributes[NAME] == "serve.py"
    child = parent._replace(pid=12, start_boottime_ns=1)
    assert resources.of(child).resource.attributes[NAME] == (
        "serve.py" if randomize == "2" else "unknown_service"
    )


def test_a_fork_of_who_listens_is_known_before_that_one_has_read_anything(proc: Proc) -> None:
    (proc.directory.parent / "cgroup/a").mkdir()
    number = (proc.directory.parent / "cgroup/a").stat().st_ino
    parent = proc.add(
        11, "/usr/bin/python3.11", ("python3", "serve.py"), cgroup="0::/a\n", cgroup_id=number
    )
    child = parent._replace(pid=12, start_boottime_ns=1)
    resources = Resources(None, listeners=Listeners(11))
    assert resources.of(child, PORT + 1).resource.attributes[NAME] == "unknown_service"
    assert resources.of(child._replace(pid=13), PORT).resource.attributes[NAME] == "serve.py"
    # Somebody else's child is not this one's, whoever listens.
    other = child._replace(pid=14, stack=77)
    assert resources.of(other, PORT).resource.attributes[NAME] == "unknown_service"
    resources = Resources(None)
    resources.know(11)
    assert resources.of(child).resource.attributes[NAME] == "serve.py"


def test_what_is_remembered_has_an_end(proc: Proc, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("_PROCESSES_MOST", "_PROGRAMS_MOST", "_SERVICES_MOST"):
        monkeypatch.setattr(resource, limit, 8)
    resources = Resources(None)
    processes = [proc.add(pid, f"/srv/shop{pid}") for pid in range(100, 150)]
    for _ in range(2):
        for process in processes:
            named = resources.of(process).resource
            assert named.attributes[NAME] == f"shop{process.pid}"
            assert resources.of_service(named).attributes[NAME] == f"shop{process.pid}"
    kept = (resources._by_process, resources._by_program, resources._by_service)
    assert [len(each) for each in kept] == [8, 8, 8]


def test_a_pid_that_is_used_again() -> None:
    """A real one: what it was stays, and it is nobody else."""
    resources = Resources(None)
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        # Its answer says that exec() is over, which writes the stack's address last.
        first.stdin.write(b"here\n")
        first.stdin.flush()
        assert first.stdout.readline() == b"here\n"
        running = look_at(first.pid, ())
        assert running is not None
        cat = Process(first.pid, running.start_ticks * 10_000_000, 0, running.stack, running.comm)
        named = resources.of(cat)
        assert named.resource.attributes[EXECUTABLE] == "cat"
        first.kill()
    assert resources.of(cat) is named
    later = cat._replace(start_boottime_ns=cat.start_boottime_ns + 10_000_000, stack=1)
    assert EXECUTABLE not in resources.of(later).resource.attributes


# ---- of nobody ----


@pytest.mark.parametrize("port", [0, PORT])
def test_nobody(proc: Proc, port: int) -> None:
    """Whoever was looked at before."""
    resources = Resources(None)
    resources.of(proc.add(11, "/usr/sbin/nginx"))
    named = resources.of(NOBODY, port)
    assert named.resource.attributes[NAME] == "unknown_service"
    assert not {PID, EXECUTABLE} & named.resource.attributes.keys()
    assert not named.is_certain
    assert Resources("shop").of(NOBODY, port).resource.attributes[NAME] == "shop"


def test_what_nobody_has_read_is_of_the_one_service_that_listens(proc: Proc) -> None:
    for pid in (11, 12):
        proc.add(
            pid,
            "/usr/sbin/nginx",
            environment={"OTEL_RESOURCE_ATTRIBUTES": f"service.namespace=web,worker={pid}"},
        )
    listeners = Listeners(11, 12)
    resources = Resources(None, listeners=listeners)
    found = resources.of(NOBODY, PORT).resource
    assert (found.attributes[NAME], found.attributes["service.namespace"]) == ("nginx", "web")
    assert not {PID, "worker"} & found.attributes.keys()
    assert resources.of(NOBODY, PORT).resource is found
    assert resources.of(NOBODY).resource.attributes[NAME] == "unknown_service"

    proc.add(13, "/srv/shop")
    listeners.pids = frozenset((11, 12, 13))
    assert resources.of(NOBODY, PORT).resource.attributes[NAME] == "unknown_service"
    listeners.pids = frozenset((13, 14))
    assert resources.of(NOBODY, PORT).resource.attributes[NAME] == "shop"
    listeners.pids = frozenset()
    assert resources.of(NOBODY, PORT).resource.attributes[NAME] == "unknown_service"


def test_what_nobody_has_read_is_of_the_one_container_that_listens(proc: Proc) -> None:
    for pid in (11, 12):
        proc.add(pid, "/usr/sbin/nginx", cgroup=IN_POD)
    listeners = Listeners(11, 12)
    resources = Resources(None, listeners=listeners)
    found = resources.of(NOBODY, PORT).resource.attributes
    assert [found[key] for key in (NAME, CONTAINER, RUNTIME, POD)] == [
        "nginx", ID, "containerd", UID
    ]  # fmt: skip
    proc.add(13, "/usr/sbin/nginx", cgroup=IN_POD.replace("3f", "3e"))
    listeners.pids = frozenset((11, 12, 13))
    found = resources.of(NOBODY, PORT).resource.attributes
    assert found[NAME] == "nginx"
    assert not {CONTAINER, RUNTIME, POD} & found.keys()


# ---- what is common to all ----


def test_the_agents_own_name_is_the_agents(environment: pytest.MonkeyPatch, proc: Proc) -> None:
    process = proc.add(11, "/usr/sbin/nginx")
    assert Resources(None).of_agent().attributes[NAME] == "otelbpf"
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=by-attributes,zone=a,rack=7")
    resources = Resources(None)
    assert resources.of_agent().attributes[NAME] == "by-attributes"
    environment.setenv("OTEL_SERVICE_NAME", "by-variable")
    resources = Resources(None)
    assert resources.of_agent().attributes[NAME] == "by-variable"
    # All else that it says holds for those that it measures, unless they say otherwise.
    other = proc.add(12, "/srv/shop", environment=BY_ATTRIBUTES)
    for of, name, zone in ((process, "nginx", "a"), (other, "by-attributes", "b")):
        found = resources.of(of).resource.attributes
        assert (found[NAME], found["zone"], found["rack"]) == (name, zone, "7")
    assert resources.of_agent().attributes["zone"] == "a"


def test_the_machine(proc: Proc) -> None:
    found = Resources(None).of(proc.add(11, "/usr/sbin/nginx")).resource.attributes
    assert found[host_attributes.HOST_NAME] == socket.gethostname()
    assert found[os_attributes.OS_TYPE] == os_attributes.OsTypeValues.LINUX.value
    assert found[os_attributes.OS_VERSION] == platform.release()
    assert found["otelbpf.kernel.release"] == platform.release()


@pytest.mark.parametrize(
    ("machine", "arch"), [("x86_64", "amd64"), ("aarch64", "arm64"), ("riscv64", "riscv64")]
)
def test_architectures(monkeypatch: pytest.MonkeyPatch, machine: str, arch: str) -> None:
    monkeypatch.setattr(resource.platform, "machine", lambda: machine)
    assert Resources("s").of_unknown().attributes[host_attributes.HOST_ARCH] == arch


def test_the_hash_is_worked_out_once(monkeypatch: pytest.MonkeyPatch, proc: Proc) -> None:
    calls = []
    plain = Resource.__hash__
    monkeypatch.setattr(Resource, "__hash__", lambda self: calls.append(1) or plain(self))
    one = Resources(None).of(proc.add(11, "/usr/sbin/nginx")).resource
    assert len({hash(one) for _ in range(23)}) == 1
    assert len(calls) == 1
    assert hash(one) == plain(one)


def test_equal_resources_are_one_key(proc: Proc) -> None:
    process, another = proc.add(11, "/usr/sbin/nginx"), proc.add(12, "/usr/sbin/nginx")
    one, same = Resources(None).of(process).resource, Resources(None).of(process).resource
    other = Resources(None).of(another).resource
    assert one is not same
    assert one == same
    assert hash(one) == hash(same)
    assert one != other
    assert len({one, same, other, Resource(one.attributes)}) == 2


# ---- services ----


def test_each_pod_is_a_service_of_its_own_where_it_has_to_give_the_name(proc: Proc) -> None:
    """In metrics, which are of services: else two pods' would be one, of neither."""
    resources = Resources(None)
    other = UID.replace("d", "e")
    of_pods = [
        resources.of(proc.add(11 + number, "/usr/sbin/nginx", environment=variables, cgroup=cgroup))
        for number, (variables, cgroup) in enumerate([
            ({}, IN_POD), ({}, IN_POD.replace(UID.replace("-", "_"), other.replace("-", "_"))),
            ({}, IN_POD), ({}, f"0::/docker/{ID}\n"),
            (BY_VARIABLE, IN_POD), (BY_VARIABLE, f"0::/docker/{ID}\n"),
        ])
    ]  # fmt: skip
    one, two, again, no_pod, named, named_elsewhere = (
        resources.of_service(each.resource) for each in of_pods
    )
    assert one is again
    assert len({each.attributes[INSTANCE] for each in (one, two, no_pod)}) == 3
    assert [each.attributes.get(POD) for each in (one, two, no_pod)] == [UID, other, None]
    assert [each.attributes.get(CONTAINER) for each in (one, two, no_pod)] == [ID, ID, None]
    assert named is named_elsewhere
    assert not {POD, CONTAINER, RUNTIME, FALLBACK} & named.attributes.keys()


def test_a_service_is_no_process_and_an_instance(
    environment: pytest.MonkeyPatch, proc: Proc
) -> None:
    """The same one each time in this namespace of this host; collectors would mix them up."""
    said = {"OTEL_RESOURCE_ATTRIBUTES": "service.instance.id=one,zone=b,service.namespace=web"}
    process = proc.add(11, "/usr/sbin/nginx", environment=said, cgroup=f"0::/docker/{ID}\n")
    here, there = Resources(None, "1"), Resources(None, "2")
    nginx = here.of_service(here.of(process).resource)
    assert not {key for key in nginx.attributes if key.startswith("process.")}
    assert not {CONTAINER, "zone"} & nginx.attributes.keys()
    assert nginx.attributes[NAME] == "nginx"
    assert nginx.attributes["service.namespace"] == "web"
    assert nginx.attributes[INSTANCE] != "one"
    again = Resources(None, "1")
    assert again.of_service(again.of(process).resource) == nginx
    shop = here.of(proc.add(12, "/srv/shop")).resource
    others = {
        each.attributes[INSTANCE]
        for each in (
            nginx, there.of_service(there.of(process).resource), here.of_service(shop),
            here.of_agent(),
        )
    }  # fmt: skip
    assert len(others) == 4
    environment.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.instance.id=till-7")
    resources = Resources(None)
    assert resources.of_service(resources.of(process).resource).attributes[INSTANCE] == "till-7"


def test_services_of_one_name_in_two_namespaces_are_two(proc: Proc) -> None:
    resources = Resources(None)
    services = [
        resources.of_service(resources.of(process).resource)
        for process in (
            proc.add(11, "/srv/cart"),
            proc.add(
                12, "/srv/cart", environment={"OTEL_RESOURCE_ATTRIBUTES": "service.namespace=bank"}
            ),
            proc.add(13, "/srv/cart"),
        )
    ]
    assert services[0] is services[2]
    assert services[0] != services[1]
    assert services[0].attributes[INSTANCE] != services[1].attributes[INSTANCE]

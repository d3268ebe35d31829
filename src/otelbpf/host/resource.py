# SPDX-License-Identifier: Apache-2.0
"""Who read a request, or wrote it: the OpenTelemetry resource of that process, and its service.

Source:
    OpenTelemetry semantic conventions for service, process and container resources.
"""

from __future__ import annotations

import os
import platform
import socket
import uuid
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import unquote

from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.util.types import AttributeValue

from otelbpf.host.cgroups import Cgroups, paths_of, service_unit
from otelbpf.host.command_lines import is_interpreter, program_of
from otelbpf.host.containers import place_of
from otelbpf.host.processes import Process, Running, cgroup_directory, look_at
from otelbpf.host.spawned import starter_of
from otelbpf.version import __version__

_NAME, _NAMESPACE, _INSTANCE = "service.name", "service.namespace", "service.instance.id"
_UNKNOWN_SERVICE = "unknown_service"
# True: nobody has given the service its name, it is what runs. Whoever knows better may change it.
_IS_FALLBACK = "otelbpf.service.name.fallback"
_CONTAINER, _RUNTIME, _POD = "container.id", "container.runtime.name", "k8s.pod.uid"
_WHERE = (_CONTAINER, _RUNTIME, _POD)
_AGENT = "otelbpf"
# What a process's own environment says of it, as it says it to OpenTelemetry's SDKs.
_SERVICE_NAME, _ATTRIBUTES = "OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES"
# Of ids that are made from what tells instances apart, by OpenTelemetry's semantic conventions.
_INSTANCES = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
# Those that are forgotten first are looked at again, if they still run.
_PROCESSES_MOST, _PROGRAMS_MOST, _SERVICES_MOST = 4_096, 4_096, 4_096

_Attributes = dict[str, AttributeValue]
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class _SharedResource(Resource):
    """A resource that many spans share: its hash, a JSON dump in the SDK, is kept."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class Listening(Protocol):
    """Who listens on the measured ports; otelbpf.processes.Listeners is one."""

    def of(self, port: int) -> frozenset[int]:
        """The pids of those of a port; the same object where nobody has looked since."""


class _Nobody:
    def of(self, _port: int) -> frozenset[int]:
        return frozenset()


_NOBODY = _Nobody()


class Named(NamedTuple):
    """A process's resource.

    Attributes:
        is_certain: it is what /proc said of the process, or of one that runs the same since one of
            the two has forked the other. Else the process was gone before anybody looked at it,
            and its name is what the kernel knew.
    """

    resource: Resource
    is_certain: bool


class Resources:
    """Makes each process's resource once.

    Args:
        service_name: of all of them; None: each one's own.
        place: tells the measured network namespace from others of this host.
        listeners: who listens on the measured ports.
    """

    def __init__(
        self, service_name: str | None, place: str = "", listeners: Listening = _NOBODY
    ) -> None:
        self._service_name = service_name
        self._place = place
        self._listeners = listeners
        self._cgroups = Cgroups(cgroup_directory())
        machine: _Attributes = {
            "host.name": socket.gethostname(),
            "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                platform.machine(), platform.machine()
            ),
            "os.type": "linux",
            "os.version": platform.release(),
            "os.description": platform.version(),
            "otelbpf.kernel.release": platform.release(),
            **{
                key: value
                for key, value in Resource.create().attributes.items()
                if key.startswith("telemetry.sdk.")
            },
        }
        # The agent's own name is not that of those whom it measures; all else holds for them, too.
        given = dict(OTELResourceDetector().detect().attributes)
        agent = given.pop(_NAME, _AGENT)
        self._of_all: _Attributes = {**machine, **given}
        self._agent = _SharedResource(
            {**machine, "process.pid": os.getpid(), "service.version": __version__,
             _INSTANCE: str(uuid.uuid4()), **given, _NAME: agent}
        )  # fmt: skip
        self._unknown = _SharedResource({**self._of_all, **self._fallback(_UNKNOWN_SERVICE)})
        self._by_process: dict[Process, Named] = {}
        # What a program's processes have in common, by its stack and its cgroup.
        self._by_program: dict[tuple[int, int], _Attributes] = {}
        self._by_port: dict[int, tuple[frozenset[int], Resource]] = {}
        self._by_service: dict[tuple[object, ...], Resource] = {}

    def of(self, process: Process, port: int = 0) -> Named:
        """The resource of a process.

        It is another one's under no circumstances: of a process that is gone, only what the kernel
        knew of it counts, and what is known of those that it has forked from.

        Args:
            port: that it served; 0: it was a client. A request that nobody has read is put down to
                the one service that listens there, if it is only one.
        """
        if not process.pid:
            return Named(self._of_port(port), False)
        known = self._by_process.get(process)
        if known is None:
            known = self._name(process, port)
            _put(self._by_process, process, known, _PROCESSES_MOST)
        return known

    def of_agent(self) -> Resource:
        """The agent's own, which its counters belong to."""
        return self._agent

    def of_unknown(self) -> Resource:
        """That of requests whose services nobody knows, or tells apart."""
        return self._unknown

    def of_service(self, resource: Resource) -> Resource:
        """The resource of all processes here that are the same service as this one.

        Collectors tell hosts apart by its instance, which is all of these processes together. What
        runs in a pod and has no name of its own gets the pod's there: each pod's is a service.
        """
        attributes = self._service_only(resource.attributes)
        if attributes.get(_IS_FALLBACK) and _POD in resource.attributes:
            attributes |= _of_keys(resource.attributes, _WHERE)
        key = tuple(attributes.get(each) for each in (_NAME, _NAMESPACE, _CONTAINER, _POD))
        service = self._by_service.get(key)
        if service is None:
            names = "/".join(str(part) for part in reversed(key) if part)
            where = f"{self._of_all['host.name']!s}/{self._place}/{names}"
            attributes.setdefault(_INSTANCE, str(uuid.uuid5(_INSTANCES, where)))
            service = _SharedResource(attributes)
            _put(self._by_service, key, service, _SERVICES_MOST)
        return service

    def know(self, pid: int) -> None:
        """Looks at a process that runs, so that what it forks can be named, however short-lived."""
        running = look_at(pid, (_SERVICE_NAME, _ATTRIBUTES))
        if running is not None:
            self._attributes_of(running, None)

    def refresh(self) -> None:
        """Once a second: finds services' new cgroups."""
        self._cgroups.refresh()

    # ---- what is known of a process ----

    def _name(self, process: Process, port: int) -> Named:
        own: _Attributes = {"process.pid": process.pid}
        program = process.stack, process.cgroup_id
        attributes = self._by_program.get(program)
        if attributes is None:
            running = look_at(process.pid, (_SERVICE_NAME, _ATTRIBUTES))
            if running is not None and running.is_still(process):
                attributes = self._attributes_of(running, process.cgroup_id)
            else:
                # Who listens there may have forked it.
                for pid in self._listeners.of(port) if port else ():
                    self.know(pid)
                attributes = self._by_program.get(program)
        if attributes is not None:
            return Named(_SharedResource({**attributes, **own}), True)
        return Named(_SharedResource({**self._of_gone(process), **own}), False)

    def _attributes_of(self, running: Running, cgroup_id: int | None) -> _Attributes:
        """Of a process that runs, and of all that run the same in the same cgroup.

        Args:
            cgroup_id: that one's number, if the kernel has told it.
        """
        paths = paths_of(running.cgroups)
        if cgroup_id is None:
            cgroup_id = self._cgroups.number(paths.unified)
        else:
            self._cgroups.learn(cgroup_id, paths.unified)
        said = _pairs(running.variables.get(_ATTRIBUTES, ""))
        told = running.variables.get(_SERVICE_NAME) or said.get(_NAME, "")
        attributes: _Attributes = {**self._of_all, **said}
        if running.executable:
            attributes["process.executable.name"] = running.executable
        attributes |= _where(paths.all)
        if name := told or service_unit(paths.systemds):
            attributes |= self._named(name)
        else:
            attributes |= self._fallback(_program_name(running))
        if running.stack:
            program = running.stack, cgroup_id
            _put(self._by_program, program, attributes, _PROGRAMS_MOST)
        return attributes

    def _of_gone(self, process: Process) -> _Attributes:
        """Of a process of which nothing is left but what the kernel has told."""
        path = self._cgroups.path(process.cgroup_id)
        attributes = {**self._of_all, **_where([path])}
        if unit := service_unit(path):
            return attributes | self._named(unit)
        name = process.comm.decode("utf-8", "backslashreplace")
        name = _UNKNOWN_SERVICE if is_interpreter(name) else name
        return attributes | self._fallback(name or _UNKNOWN_SERVICE)

    def _of_port(self, port: int) -> Resource:
        pids = self._listeners.of(port) if port else frozenset()
        known = self._by_port.get(port)
        if known is not None and known[0] is pids:
            return known[1]
        looks = [look_at(pid, (_SERVICE_NAME, _ATTRIBUTES)) for pid in pids]
        found = [self._attributes_of(running, None) for running in looks if running is not None]
        services = [self._service_only(each) for each in found]
        resource = self._unknown
        if found and all(each == services[0] for each in services):
            wheres = [_of_keys(each, _WHERE) for each in found]
            is_one = all(each == wheres[0] for each in wheres)
            resource = _SharedResource({**services[0], **(wheres[0] if is_one else {})})
        self._by_port[port] = pids, resource
        return resource

    def _service_only(self, attributes: Mapping[str, AttributeValue]) -> _Attributes:
        """What all processes of a service have in common."""
        return {**self._of_all, **_of_keys(attributes, (_NAMESPACE, _NAME, _IS_FALLBACK))}

    def _named(self, name: str) -> _Attributes:
        return {_NAME: self._service_name or name}

    def _fallback(self, name: str) -> _Attributes:
        """Of who has no name of its own."""
        is_given = self._service_name is not None
        return self._named(name) if is_given else {_NAME: name, _IS_FALLBACK: True}


def _where(paths: Iterable[str]) -> _Attributes:
    """The container and the pod of who has these paths among the cgroups."""
    container, pod_uid = place_of(paths)
    told: _Attributes = {}
    if container is not None:
        told[_CONTAINER] = container.id
        if container.runtime:
            told[_RUNTIME] = container.runtime
    if pod_uid:
        told[_POD] = pod_uid
    return told


def _of_keys(attributes: Mapping[str, AttributeValue], keys: Iterable[str]) -> _Attributes:
    return {key: attributes[key] for key in keys if key in attributes}


def _program_name(running: Running) -> str:
    # Without the right to look at what it runs: what exec() has called it.
    executable = running.executable or running.comm.decode("utf-8", "backslashreplace")
    program = program_of(executable, running.arguments)
    if not program and (starter := starter_of(running)) is not None:
        program = program_of(starter.executable, starter.arguments)
    if program or not running.executable:
        return program or _UNKNOWN_SERVICE
    return f"{_UNKNOWN_SERVICE}:{running.executable}"


def _pairs(text: str) -> dict[str, str]:
    """What OTEL_RESOURCE_ATTRIBUTES says, as OpenTelemetry's SDK reads it; the rest is left out."""
    pairs: dict[str, str] = {}
    for pair in text.split(","):
        key, equals, value = pair.partition("=")
        if equals and key.strip():
            pairs[key.strip()] = unquote(value.strip())
    return pairs


def _put(known: dict[_Key, _Value], key: _Key, value: _Value, most: int) -> None:
    """Adds to what is known; the oldest goes where there is no room."""
    if len(known) >= most:
        known.pop(next(iter(known)))
    known[key] = value

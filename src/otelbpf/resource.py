# SPDX-License-Identifier: Apache-2.0
"""Who handled a request: the OpenTelemetry resource of the serving process."""

from __future__ import annotations

import os
import platform
import socket
import uuid

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from otelbpf.processes import executable_name, start_time
from otelbpf.version import __version__

_UNKNOWN_SERVICE = "unknown_service"
# Of ids that are made from what tells instances apart, by OpenTelemetry's semantic conventions.
_INSTANCES = uuid.UUID("4d63009a-8d0f-11ee-aad7-4c796ed8e320")
_OF_ONE_PROCESS = ("process.pid", "process.executable.name")


class _SharedResource(Resource):
    """A resource that many spans share: its hash, a JSON dump in the SDK, is kept."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


class Resources:
    """Makes each serving process's resource once.

    Args:
        service_name: of all of them; None: OTEL_SERVICE_NAME, then
            OTEL_RESOURCE_ATTRIBUTES, then the process's own name.
        place: tells the measured network namespace from others of this host.
    """

    def __init__(self, service_name: str | None, place: str = "") -> None:
        self._service_name = service_name
        self._place = place
        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        self._from_environment = dict(OTELResourceDetector().detect().attributes)
        self._machine = {
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
        self._by_pid: dict[int, tuple[int, Resource]] = {}
        self._agent = _SharedResource(
            {**self._machine, "process.pid": os.getpid(), "service.name": "otelbpf",
             "service.version": __version__, "service.instance.id": str(uuid.uuid4())}
        )
        self._by_service: dict[str, Resource] = {}
        self._last_name = ""

    def of_process(self, pid: int) -> Resource:
        """The resource of the process `pid`, as it was when first asked for.

        A pid of 0 (a request that nobody read) or of a process that is gone gets
        the name of the last process known, since it served the same port.
        """
        known = self._by_pid.get(pid)
        if known is None:
            known = self._by_pid[pid] = (start_time(pid), self._make(pid))
        return known[1]

    def of_agent(self) -> Resource:
        """The agent's own, which its counters belong to."""
        return self._agent

    def of_service(self, pid: int) -> Resource:
        """The resource of all processes here that are this service, as `pid` is.

        Collectors tell hosts apart by its instance, which is all of these processes together.
        """
        attributes = {
            key: value
            for key, value in self.of_process(pid).attributes.items()
            if key not in _OF_ONE_PROCESS
        }
        name = str(attributes["service.name"])
        instance = uuid.uuid5(_INSTANCES, f"{self._machine['host.name']}/{self._place}/{name}")
        attributes.setdefault("service.instance.id", str(instance))
        return self._by_service.setdefault(name, _SharedResource(attributes))

    def forget_gone(self) -> None:
        """Forgets processes that have ended: their pids may come to mean others."""
        for pid, (started, _) in list(self._by_pid.items()):
            if started == 0 or start_time(pid) != started:
                self._by_pid.pop(pid, None)

    def _make(self, pid: int) -> Resource:
        name = executable_name(pid) if pid else ""
        self._last_name = name or self._last_name
        attributes: dict[str, str | int] = dict(self._machine)
        if pid:
            attributes["process.pid"] = pid
        if name:
            attributes["process.executable.name"] = name
        attributes.update(self._from_environment)
        if self._service_name:
            attributes["service.name"] = self._service_name
        attributes.setdefault("service.name", self._last_name or _UNKNOWN_SERVICE)
        return _SharedResource(attributes)

# SPDX-License-Identifier: Apache-2.0
"""Who handled a request: the OpenTelemetry resource of the serving process."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

from opentelemetry.sdk.resources import Resource

_PROC = Path("/proc")
_UNKNOWN_SERVICE = "unknown_service"


class _SharedResource(Resource):
    """A resource that many spans share: its hash, a JSON dump in the SDK, is kept."""

    _hash: int | None = None

    def __hash__(self) -> int:
        if self._hash is None:
            self._hash = super().__hash__()
        return self._hash


def _executable_name(pid: int) -> str:
    """The file name of a process's executable; empty where it cannot be told any more."""
    try:
        return Path(os.readlink(_PROC / str(pid) / "exe")).name.removesuffix(" (deleted)")
    except OSError:
        return ""


class Resources:
    """Makes each serving process's resource once.

    Args:
        service_name: of all of them; None: OTEL_SERVICE_NAME, then
            OTEL_RESOURCE_ATTRIBUTES, then the process's own name.
    """

    def __init__(self, service_name: str | None) -> None:
        self._service_name = service_name
        # Reads OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES.
        self._from_environment = Resource.create({})
        self._machine = {
            "host.name": socket.gethostname(),
            "host.arch": {"x86_64": "amd64", "aarch64": "arm64"}.get(
                platform.machine(), platform.machine()
            ),
            "os.type": "linux",
            "os.version": platform.release(),
            "os.description": platform.version(),
            "otelbpf.kernel.release": platform.release(),
        }
        self._by_pid: dict[int, Resource] = {}
        self._last_name = ""

    def of_process(self, pid: int) -> Resource:
        """The resource of the process `pid`, as it was when first asked for.

        A pid of 0 (a request that nobody read) or of a process that is gone gets
        the name of the last process known, since it served the same port.
        """
        resource = self._by_pid.get(pid)
        if resource is None:
            resource = self._by_pid[pid] = self._make(pid)
        return resource

    def _make(self, pid: int) -> Resource:
        name = _executable_name(pid) if pid else ""
        self._last_name = name or self._last_name
        attributes: dict[str, str | int] = dict(self._machine)
        if pid:
            attributes["process.pid"] = pid
        if name:
            attributes["process.executable.name"] = name
        attributes.update(
            (key, value)
            for key, value in self._from_environment.attributes.items()
            if not (key == "service.name" and str(value).startswith(_UNKNOWN_SERVICE))
        )
        if self._service_name:
            attributes["service.name"] = self._service_name
        attributes.setdefault("service.name", self._last_name or _UNKNOWN_SERVICE)
        return _SharedResource(attributes)

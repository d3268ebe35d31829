# SPDX-License-Identifier: Apache-2.0
"""OTELBPF_AGENT=auto: otelbpf runs as long as the application does, as its child.

Environment variables:
    OTELBPF_AGENT: `auto` starts it.
    OTELBPF_PORT: the ports to measure, with commas between them.
    OTELBPF_INTERFACE: the interfaces, likewise (default: lo and that of the default route).
    OTELBPF_PYTHON: an interpreter that has otelbpf (default: the command `otelbpf`, else
        /usr/bin/python3).
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path

from otelbpf_plugin import leash
from otelbpf_plugin.log import logger, warn_once

_PYTHON = "/usr/bin/python3"
# Capabilities by their bits, linux/capability.h; the ones that otelbpf itself asks for.
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_ADMIN": 21}
_STOP_TIMEOUT_S = 5.0
# They write to standard output, and nobody reads the child's.
_TO_STDOUT = ("console", "otlp_json_file")
# What would make the agent's interpreter another one, or instrument it.
_NOT_HANDED_ON = ("PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", "OTEL_PROPAGATORS", "OTELBPF_AGENT")


def start_if_asked() -> None:
    """Starts the agent if OTELBPF_AGENT says so; if it cannot, it says why, once.

    Where another process measures the same ports in this network namespace (a worker of the same
    application), there is one already.
    """
    wanted = os.environ.get("OTELBPF_AGENT", "")
    if not wanted:
        return
    try:
        problem = _problem(wanted, os.environ)
        if problem:
            warn_once(f"starts no otelbpf: {problem}")
            return
        lock = _lock(_listed(os.environ["OTELBPF_PORT"]))
        if lock is None:
            logger.info("otelbpf runs already for port %s", os.environ["OTELBPF_PORT"])
            return
        _ChildAgent(_command(os.environ), _environment(os.environ), lock).start()
    except Exception as error:  # an application starts, whatever is wrong here
        warn_once("cannot start otelbpf", error)


class _ChildAgent(threading.Thread):
    """Starts the agent and waits for its end.

    A thread, because the kernel's word for the end of a parent is that of the thread which started
    the child: this one lives as long as the process does, whoever called us.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], lock: socket.socket
    ) -> None:
        super().__init__(name="otelbpf-agent", daemon=True)
        self._command = command
        self._environment = environment
        self._lock = lock
        self._application = os.getpid()
        self._tried = threading.Event()
        self._process: subprocess.Popen[str] | None = None
        self._stopping = False

    def start(self) -> None:
        """Returns when the child was started, not when it is ready."""
        super().start()
        self._tried.wait()
        atexit.register(self._stop)

    def run(self) -> None:
        last_word = ""
        try:
            with self._lock:  # the child's copy of it stays, for as long as it runs
                self._process = subprocess.Popen(
                    self._command,
                    env=self._environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    errors="replace",
                    pass_fds=[self._lock.fileno()],
                    # Ctrl-C is for the application, which then ends the agent.
                    start_new_session=True,
                )
        except OSError as error:
            warn_once(f"cannot start otelbpf: {error}")
            return
        finally:
            self._tried.set()
        assert self._process.stderr is not None
        for line in self._process.stderr:
            last_word = line.strip()
            logger.info("%s", last_word)
        status = self._process.wait()
        if not self._stopping:
            warn_once(f"otelbpf has ended with status {status}: {last_word}")

    def _stop(self) -> None:
        # A forked worker inherits what is to be called at its end, but the agent is not its own.
        if self._process is None or os.getpid() != self._application:
            return
        self._stopping = True
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()


def _problem(wanted: str, environment: Mapping[str, str]) -> str:
    """Why it cannot be started; empty: it can."""
    if wanted != "auto":
        return f"OTELBPF_AGENT={wanted} is not `auto`"
    if not _listed(environment.get("OTELBPF_PORT", "")):
        return "OTELBPF_PORT does not say which port to measure"
    missing = _missing_capabilities()
    if missing:
        return f"this process does not have {' and '.join(missing)}, which otelbpf needs"
    return ""


def _missing_capabilities() -> list[str]:
    """Of those that a child would have: a user other than root hands on only the ambient ones."""
    kind = "CapEff:" if os.geteuid() == 0 else "CapAmb:"
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(kind):
            bits = int(line.split()[1], 16)
            return [name for name, bit in _CAPABILITIES.items() if not bits >> bit & 1]
    return list(_CAPABILITIES)


def _lock(ports: list[str]) -> socket.socket | None:
    """A name that one process of this network namespace can have; None: another one has it.

    It is free again when the last process that holds the socket has ended, even by SIGKILL.
    """
    lock = socket.socket(socket.AF_UNIX)
    try:
        lock.bind(f"\0otelbpf-plugin-{','.join(sorted(ports))}")
    except OSError:
        lock.close()
        return None
    return lock


def _command(environment: Mapping[str, str]) -> list[str]:
    python = environment.get("OTELBPF_PYTHON", "")
    otelbpf = None if python else shutil.which("otelbpf")
    agent = [otelbpf] if otelbpf else [python or _PYTHON, "-m", "otelbpf.cli"]
    # -I: this one needs no module from elsewhere.
    command = [python or _PYTHON, "-I", leash.__file__, str(os.getpid()), *agent, "run"]
    interfaces = _listed(environment.get("OTELBPF_INTERFACE", "")) or _interfaces()
    for interface in interfaces:
        command += ["--interface", interface]
    for port in _listed(environment["OTELBPF_PORT"]):
        command += ["--port", port]
    return command


def _listed(text: str) -> list[str]:
    return [part for part in (each.strip() for each in text.split(",")) if part]


def _interfaces() -> list[str]:
    """The loopback and the default route's."""
    rows = [line.split() for line in Path("/proc/net/route").read_text().splitlines()[1:]]
    return list(dict.fromkeys(["lo", *(row[0] for row in rows if row[1] == "00000000")]))


def _environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The application's, so that both send to the same place."""
    handed_on = {
        name: value
        for name, value in environment.items()
        if name not in _NOT_HANDED_ON and not name.startswith("OTEL_PYTHON_")
    }
    # It finds the application's name as it finds those of all whom it measures.
    handed_on["OTEL_SERVICE_NAME"] = "otelbpf"
    # Spans that go nowhere are not to be the parents of the application's.
    exporters = _listed(environment.get("OTEL_TRACES_EXPORTER", ""))
    if exporters:
        sent = [each for each in exporters if each not in _TO_STDOUT]
        handed_on["OTEL_TRACES_EXPORTER"] = ",".join(sent) or "none"
    # Where it is scraped by Prometheus, the address is its own.
    if "prometheus" in _listed(environment.get("OTEL_METRICS_EXPORTER", "")):
        handed_on["OTEL_METRICS_EXPORTER"] = "none"
    return handed_on

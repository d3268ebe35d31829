# SPDX-License-Identifier: Apache-2.0
"""OTELBPF_AGENT=auto: who starts the agent, with what, and that it never outlives its parent."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.waiting import wait_until

from otelbpf_plugin import child_agent

pytestmark = pytest.mark.impure

#: Stands for `otelbpf`: says how it was called, then does as it is told.
AGENT = """#!{python}
import json, os, sys, time
said = {{"pid": os.getpid(), "arguments": sys.argv[1:], "environment": dict(os.environ)}}
with open({said!r} + "." + str(os.getpid()) + ".part", "w") as file:
    json.dump(said, file)
os.rename(file.name, file.name[:-5])
{then}
"""
SLEEP = "time.sleep(600)"
FAIL = "sys.stderr.write('otelbpf: it is not to be\\n'); sys.exit(2)"
# Prints a line once the plugin is in, and ends as it is told to by a line.
APPLICATION = """
import logging, os, signal, sys, threading
logging.basicConfig(format="%(name)s %(levelname)s %(message)s", stream=sys.stderr)
from otelbpf_plugin import OtelbpfInstrumentor
if {in_thread}:
    thread = threading.Thread(target=OtelbpfInstrumentor().instrument)
    thread.start()
    thread.join()
else:
    OtelbpfInstrumentor().instrument()
print("ready", flush=True)
how = sys.stdin.readline().strip()
if how == "fork":
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    print("forked", flush=True)
    sys.stdin.readline()
if how == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""


class Lab:
    """Starts applications whose `otelbpf` is ours."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.bin = directory / "bin"
        self.bin.mkdir()
        # A port of its own: the name that agents of one port share is the machine's.
        self.port = str(os.getpid())

    def install(self, then: str) -> None:
        otelbpf = self.bin / "otelbpf"
        otelbpf.write_text(
            AGENT.format(python=sys.executable, said=str(self._directory / "said"), then=then)
        )
        otelbpf.chmod(0o755)

    @property
    def agents(self) -> list[dict]:
        return [json.loads(path.read_text()) for path in self._directory.glob("said.*")
                if path.suffix != ".part"]  # fmt: skip

    def environment(self, **more: str | None) -> dict[str, str]:
        wanted = {
            **os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "OTELBPF_AGENT": "auto",
            "OTELBPF_PORT": self.port, **more,
        }  # fmt: skip
        return {name: value for name, value in wanted.items() if value is not None}

    @contextlib.contextmanager
    def application(
        self, *, in_thread: bool = False, under: tuple[str, ...] = (), **more: str | None
    ) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            [*under, sys.executable, "-c", APPLICATION.format(in_thread=in_thread)],
            env=self.environment(**more), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            yield process
        finally:
            process.kill()
            process.communicate()


def end(process: subprocess.Popen[str], how: str = "") -> str:
    """Ends an application in order, or by SIGKILL; returns what it said to standard error."""
    _, said = process.communicate(f"{how}\n", timeout=30)
    assert process.returncode == (-signal.SIGKILL if how == "kill" else 0)
    return said


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def children_of(pid: int) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/status"):
        with contextlib.suppress(OSError):
            if f"\nPPid:\t{pid}\n" in path.read_text():
                found.append(path.parent.name)
    return found


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    made.install(SLEEP)
    yield made
    for agent in made.agents:
        with contextlib.suppress(ProcessLookupError):
            os.kill(agent["pid"], signal.SIGKILL)


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root hands on capabilities")


@needs_root
@pytest.mark.parametrize("in_thread", [False, True], ids=["main thread", "another thread"])
@pytest.mark.parametrize("how", ["", "kill"], ids=["in order", "killed"])
def test_it_ends_when_the_application_ends(lab: Lab, how: str, in_thread: bool) -> None:
    with lab.application(in_thread=in_thread) as process:
        wait_until(lambda: len(lab.agents) == 1, "its agent was started")
        (agent,) = lab.agents
        assert is_there(agent["pid"])  # though the thread that asked for it may have ended
        said = end(process, how)
        wait_until(lambda: not is_there(agent["pid"]), "the agent ended")
    assert said == ""


@needs_root
def test_it_is_told_what_to_measure_and_where_to_send(lab: Lab) -> None:
    with lab.application(
        OTELBPF_PORT=f"{lab.port}, 81", OTELBPF_INTERFACE="eth0,lo", OTEL_SERVICE_NAME="shop",
        OTEL_RESOURCE_ATTRIBUTES="service.name=shop,deployment.environment.name=here",
        OTEL_EXPORTER_OTLP_ENDPOINT="http://collector:4317", OTEL_PYTHON_LOG_LEVEL="debug",
        OTEL_PROPAGATORS="tracecontext,otelbpf", PYTHONPATH="/somewhere",
    ) as process:  # fmt: skip
        wait_until(lambda: len(lab.agents) == 1, "its agent was started")
        end(process)
    (agent,) = lab.agents
    assert agent["arguments"] == [
        "run", "--interface", "eth0", "--interface", "lo", "--port", lab.port, "--port", "81",
    ]  # fmt: skip
    environment = agent["environment"]
    # The name is the application's; all else holds for both.
    assert environment["OTEL_SERVICE_NAME"] == "otelbpf"
    assert environment["OTEL_RESOURCE_ATTRIBUTES"].endswith("deployment.environment.name=here")
    assert environment["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://collector:4317"
    # It is neither another interpreter's nor instrumented, and starts no other one.
    left_out = {"PYTHONPATH", "OTEL_PROPAGATORS", "OTEL_PYTHON_LOG_LEVEL", "OTELBPF_AGENT"}
    assert not left_out & environment.keys()


@pytest.mark.parametrize(
    ("of_the_application", "of_the_agent"),
    [("otlp", "otlp"), ("none", "none"), ("prometheus", "none"), ("otlp, prometheus", "none")],
)
def test_the_address_for_prometheus_stays_the_applications(
    of_the_application: str, of_the_agent: str
) -> None:
    handed_on = child_agent._environment({"OTEL_METRICS_EXPORTER": of_the_application})
    assert handed_on["OTEL_METRICS_EXPORTER"] == of_the_agent


@pytest.mark.parametrize(
    ("of_the_application", "of_the_agent"),
    [("otlp", "otlp"), ("none", "none"), ("console", "none"), ("otlp_json_file", "none"),
     ("console, otlp", "otlp")],
)  # fmt: skip
def test_spans_that_would_go_to_standard_output_are_not_made(
    of_the_application: str, of_the_agent: str
) -> None:
    """Nobody reads the agent's, and the application's spans would be children of theirs."""
    handed_on = child_agent._environment({"OTEL_TRACES_EXPORTER": of_the_application})
    assert handed_on["OTEL_TRACES_EXPORTER"] == of_the_agent


@needs_root
def test_one_for_all_processes_of_an_application(lab: Lab) -> None:
    """Neither a forked worker nor one that was started anew has another one, or ends this one."""
    with lab.application() as first:
        wait_until(lambda: len(lab.agents) == 1, "its agent was started")
        with lab.application() as second:
            assert not children_of(second.pid)
            assert end(second) == ""
        first.stdin.write("fork\n")
        first.stdin.flush()
        assert first.stdout.readline() == "forked\n"
        (agent,) = lab.agents
        assert is_there(agent["pid"])
        end(first)
    wait_until(lambda: not is_there(agent["pid"]), "the agent ended")
    with lab.application() as third:
        wait_until(lambda: len(lab.agents) == 2, "another one was started")
        end(third)


@needs_root
def test_an_agent_that_fails_is_told_of_once(lab: Lab) -> None:
    lab.install(FAIL)
    with lab.application() as process:
        said = process.stderr.readline()
        assert said == (
            "otelbpf_plugin WARNING otelbpf has ended with status 2: otelbpf: it is not to be\n"
        )
        assert end(process) == ""


@needs_root
def test_an_agent_that_is_not_there_is_told_of_once(lab: Lab) -> None:
    with lab.application(OTELBPF_PYTHON="/nowhere/python") as process:
        assert "cannot start otelbpf" in end(process)


@pytest.mark.parametrize(
    ("more", "under", "words"),
    [
        ({"OTELBPF_PORT": None}, (), "OTELBPF_PORT does not say which port to measure"),
        ({"OTELBPF_AGENT": "yes"}, (), "OTELBPF_AGENT=yes is not `auto`"),
        ({}, ("setpriv", "--bounding-set=-net_admin"),
         "this process does not have CAP_NET_ADMIN, which otelbpf needs"),
        ({}, ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"),
         "this process does not have CAP_NET_ADMIN and CAP_SYS_ADMIN, which otelbpf needs"),
    ],
    ids=["no port", "unknown", "one capability less", "nobody"],
)  # fmt: skip
@needs_root
def test_why_none_is_started_is_said_once(
    lab: Lab, more: dict[str, str | None], under: tuple[str, ...], words: str
) -> None:
    with lab.application(under=under, **more) as process:
        assert end(process) == f"otelbpf_plugin WARNING starts no otelbpf: {words}\n"
    assert not lab.agents


def test_none_is_started_unasked(lab: Lab) -> None:
    with lab.application(OTELBPF_AGENT=None) as process:
        assert end(process) == ""
    assert not lab.agents


def test_interfaces_are_the_loopback_and_the_default_route_s() -> None:
    interfaces = child_agent._interfaces()
    assert interfaces[0] == "lo"
    route = subprocess.run(["ip", "-4", "-json", "route", "show", "default"], capture_output=True,
                           text=True, check=True, timeout=30)  # fmt: skip
    assert {each["dev"] for each in json.loads(route.stdout or "[]")} == set(interfaces[1:])

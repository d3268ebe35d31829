# SPDX-License-Identifier: Apache-2.0
"""What probes learn of an agent that loads, measures, does not, stands still or is killed."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from collectors import HOST
from demo.receiver import Behaviour, Receiver
from servers import Server
from stack import COUNT, Agent, agent, otelbpf, to, wait_for_requests
from support.commands import run
from support.namespaces import Network, network
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

NOWHERE = {"OTEL_TRACES_EXPORTER": "none"}
OK = (200, "ok\n")


@pytest.fixture
def own() -> Iterator[Network]:
    """A network that a test may change as it likes."""
    with network() as net:
        yield net


def options(net: Network, port: int, probed: int) -> tuple[str | int, ...]:
    return (
        "--interface", net.server.interface, "--port", port, "--netns", net.server.netns,
        "--health", probed,
    )  # fmt: skip


def ask(net: Network, server: Server) -> None:
    with Client.of(net, server.port) as client:
        for number in range(COUNT):
            client.ask(f"/{number}")


def probe(
    port: int, path: str, method: str = "GET", patience_s: float = DEADLINE_S
) -> tuple[int, str]:
    """As kubelet does it: status and text."""
    connection = http.client.HTTPConnection(HOST, port, timeout=patience_s)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.read().decode()
    finally:
        connection.close()


def wait_for_answer(port: int, path: str, status: int, words: str) -> None:
    """Waits until a probe is answered so."""

    def answered() -> bool:
        answer = probe(port, path)
        return answer[0] == status and words in answer[1]

    wait_until(answered, f"{path} says {status}: {words}", state=lambda: probe(port, path))


def states(running: Agent) -> set[str]:
    """Of its threads, as the kernel says them."""
    files = (task / "stat" for task in Path(f"/proc/{running.pid}/task").iterdir())
    return {file.read_text().rpartition(")")[2].split()[0] for file in files}


def is_fresh(running: Agent) -> bool:
    """Asks as the documentation says."""
    found = subprocess.run(
        ["find", running.ready_file, "-newermt", "-5 seconds"], capture_output=True, text=True
    )
    return bool(found.stdout)


def test_while_it_loads_measures_and_stops(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    port = unused_port()
    receiver.behave(Behaviour(refuse=True))
    environment = {**to(receiver), "OTEL_BSP_EXPORT_TIMEOUT": "5000"}
    with agent(tmp_path, *options(net, server.port, port), environment=environment) as running:
        wait_until(lambda: "loading" in running.stderr, "it loads")
        assert probe(port, "/livez") == OK
        assert probe(port, "/readyz") == (503, "loading programs\n")
        assert probe(port, "/readyz", "HEAD") == (503, "")
        assert not running.ready_file.exists()
        wait_for_answer(port, "/readyz", *OK)
        assert running.ready_file.exists()
        assert is_fresh(running)
        made = running.ready_file.stat().st_mtime_ns
        wait_until(lambda: running.ready_file.stat().st_mtime_ns > made, "it is renewed")
        ask(net, server)
        running.send(signal.SIGTERM)
        wait_for_answer(port, "/readyz", 503, "stopping")
        assert probe(port, "/livez") == OK
        ended = running.wait()
        with pytest.raises(ConnectionRefusedError):
            probe(port, "/livez")
    ended.assert_adds_up()
    assert ended.sums["lost"] == {"export_failed": COUNT}


def test_while_an_interface_is_gone(own: Network, tmp_path: Path) -> None:
    """It is alive: what comes again is measured again."""
    port, name = unused_port(), own.server.interface
    with agent(tmp_path, *options(own, 8080, port), environment=NOWHERE) as running:
        running.wait_ready()
        wait_for_answer(port, "/readyz", *OK)
        run("ip", "-n", own.server.netns, "link", "del", name)
        wait_for_answer(port, "/readyz", 503, f"interface {name}: gone for ")
        assert probe(port, "/livez") == OK
        run(
            "ip", "-n", own.server.netns, "link", "add", name, "type", "veth", "peer", "name", "end"
        )
        wait_for_answer(port, "/readyz", *OK)
        running.stop().assert_clean(seen=0)


def test_a_namespace_that_ends_takes_a_restart(own: Network, tmp_path: Path) -> None:
    port, name = unused_port(), own.server.interface
    with agent(tmp_path, *options(own, 8080, port), environment=NOWHERE) as running:
        running.wait_ready()
        wait_for_answer(port, "/livez", *OK)
        run("ip", "netns", "del", own.server.netns)
        said = f"interface {name}: gone with its network namespace for "
        wait_for_answer(port, "/livez", 503, said)
        status, text = probe(port, "/livez")
        assert (status, text.count("\n")) == (503, 1)
        assert text.endswith(": start otelbpf again for another one\n")
        wait_for_answer(port, "/readyz", 503, said)
        running.stop().assert_clean(seen=0)


def test_stopped_and_killed_it_leaves_no_good_answer_behind(
    net: Network, server: Server, receiver: Receiver, tmp_path: Path
) -> None:
    """SIGSTOP, SIGCONT and SIGKILL: the ready file is there all the time, and its age tells.

    Its programs measure while it is stopped.
    """
    port = unused_port()
    with agent(tmp_path, *options(net, server.port, port), environment=to(receiver)) as running:
        running.wait_ready()
        wait_for_answer(port, "/readyz", *OK)
        running.send(signal.SIGSTOP)
        wait_until(lambda: states(running) == {"T"}, "it is stopped", state=lambda: states(running))
        # The kernel takes the connection, and nobody answers.
        with pytest.raises(TimeoutError):
            probe(port, "/livez", patience_s=1.0)
        wait_until(lambda: not is_fresh(running), "the ready file is old")
        assert running.ready_file.exists()
        ask(net, server)
        running.send(signal.SIGCONT)
        wait_for_requests(receiver, COUNT)
        wait_for_answer(port, "/readyz", *OK)
        wait_until(lambda: is_fresh(running), "the ready file is renewed")
        running.stop(signal.SIGKILL)
        with pytest.raises(ConnectionRefusedError):
            probe(port, "/livez")
        wait_until(lambda: not is_fresh(running), "the ready file is old")
        assert running.ready_file.exists()


#: In an agent's Python: its housekeeping waits while a file is there, and that is long very soon.
_BLOCKED = """
import pathlib, time
from otelbpf.agent import health
from otelbpf.ledger.sweeper import Sweeper

health._STILL_S = 0.5
sweep = Sweeper.sweep

def blocked(self, now_ktime_ns):
    while pathlib.Path({path!r}).exists():
        time.sleep(0.01)
    sweep(self, now_ktime_ns)

Sweeper.sweep = blocked
"""


def test_a_loop_that_stands_still(net: Network, server: Server, tmp_path: Path) -> None:
    port, blocks = unused_port(), tmp_path / "blocks"
    (tmp_path / "sitecustomize.py").write_text(_BLOCKED.format(path=str(blocks)))
    environment = {**NOWHERE, "PYTHONPATH": str(tmp_path)}
    with agent(tmp_path, *options(net, server.port, port), environment=environment) as running:
        running.wait_ready()
        wait_for_answer(port, "/livez", *OK)
        blocks.touch()
        for path in ("/livez", "/readyz"):
            wait_for_answer(port, path, 503, "the agent's loop has stood still for ")
        blocks.unlink()
        for path in ("/livez", "/readyz"):
            wait_for_answer(port, path, *OK)
        running.stop().assert_clean(seen=0)


def test_a_port_that_is_taken(net: Network, server: Server, tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as somebody:
        port = somebody.getsockname()[1]
        otelbpf(
            tmp_path, "run", *options(net, server.port, port), environment=NOWHERE
        ).assert_refused(f"cannot listen on {HOST}:{port} for probes", "in use", "--health")
    assert net.server.xdp_program() is None

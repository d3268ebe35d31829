# SPDX-License-Identifier: Apache-2.0
"""Whose the spans of real containers are: of podman's, with all namespaces of their own."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from demo.receiver import Receiver
from podman import Container, Podman, container
from servers import SOURCES, listens
from stack import Measured, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import DEADLINE_S

COUNT = 23
NAME, CONTAINER, RUNTIME = "service.name", "container.id", "container.runtime.name"
FALLBACK = "otelbpf.service.name.fallback"
PORTS = 8080, 8081, 8082
SERVER = SOURCES / "threading_server.py"
BUSYBOX = Path("/usr/bin/busybox")
# Another user's namespace: root in there is nobody here.
OTHER_USERS = "--uidmap=0:100000:65536"


@pytest.fixture
def podman() -> Iterator[Podman]:
    # Where others may come to, too: pytest's own directories are for one user.
    with tempfile.TemporaryDirectory(prefix="otelbpf-test-") as directory:
        Path(directory).chmod(0o755)
        yield Podman(Path(directory), "vfs")


@contextlib.contextmanager
def serving(
    podman: Podman,
    net: Network,
    name: str,
    port: int,
    program: Path,
    arguments: Sequence[str],
    *options: str,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Container]:
    """A container in the server's network, once it listens."""
    network = f"--network=ns:{net.server.path}"
    with container(
        podman, name, program, arguments, network, *options, environment=environment
    ) as made:
        made.process.wait_until(lambda _: listens(made.pid, port), DEADLINE_S)
        yield made


def get(net: Network, port: int) -> None:
    with net.client.connect(net.server.ipv4, port) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):
                pass


def measured_ports(net: Network) -> list[str | int]:
    ports = [word for port in PORTS for word in ("--port", port)]
    return ["--netns", net.server.netns, "--interface", net.server.interface, *ports]


def whose(requests: list[Measured]) -> Counter[tuple[object, ...]]:
    """How many there are of each port, name, container, runtime and mark."""
    keys = (NAME, CONTAINER, RUNTIME, FALLBACK)
    return Counter(
        (each["network.local.port"], *map(each.span.resource.get, keys)) for each in requests
    )


def test_three_containers_in_one_network(
    net: Network, receiver: Receiver, podman: Podman, tmp_path: Path
) -> None:
    """One says its name, one that has other users too; one forks a process for each request."""
    shop, bank, httpd = PORTS
    said = {"OTEL_RESOURCE_ATTRIBUTES": "service.name=shop,service.version=7"}
    serve_files = ["httpd", "-f", "-p", f"[::]:{httpd}", "-h", "/etc"]
    with (
        serving(podman, net, "shop", shop, SERVER, [str(shop)], OTHER_USERS, environment=said)
        as one,
        serving(podman, net, "bank", bank, SERVER, [str(bank)], OTHER_USERS) as two,
        serving(podman, net, "httpd", httpd, BUSYBOX, serve_files) as three,
        agent(tmp_path, *measured_ports(net), environment=to(receiver)) as running,
    ):  # fmt: skip
        running.wait_ready()
        for _ in range(COUNT):
            for port in PORTS:
                get(net, port)
        requests = wait_for_requests(receiver, 3 * COUNT)
        running.stop().assert_clean(seen=3 * COUNT)
        assert len({one.id, two.id, three.id}) == 3
    assert whose(requests) == {
        (shop, "shop", one.id, "podman", None): COUNT,
        (bank, "threading_server.py", two.id, "podman", True): COUNT,
        (httpd, "httpd", three.id, "podman", True): COUNT,
    }
    assert {each.span.resource.get("service.version") for each in requests} == {"7", None}
    # As the host numbers them.
    pids = {each["network.local.port"]: each.span.resource["process.pid"] for each in requests}
    assert (pids[shop], pids[bank]) == (one.pid, two.pid)


def test_one_that_dies_before_it_is_looked_at(
    net: Network, receiver: Receiver, podman: Podman, tmp_path: Path
) -> None:
    """Its container is told, or absent; it is not that of another one, which serves as well."""
    program = tmp_path / "crasher"
    subprocess.run(["gcc", "-O2", SOURCES / "one_request.c", "-o", program], check=True)
    shop, crashing, _ = PORTS
    ids = set()
    with (
        serving(podman, net, "shop", shop, SERVER, [str(shop)]) as one,
        agent(tmp_path, *measured_ports(net), environment=to(receiver)) as running,
    ):
        running.wait_ready()
        for number in range(COUNT):
            serve = ["serve", str(crashing)]
            with serving(podman, net, f"crasher{number}", crashing, program, serve) as crasher:
                ids.add(crasher.id)
                get(net, shop)
                get(net, crashing)
                assert crasher.process.popen.wait(DEADLINE_S) == 3
        requests = wait_for_requests(receiver, 2 * COUNT)
        running.stop().assert_clean(seen=2 * COUNT)
    assert len(ids) == COUNT
    of_shop = [each for each in requests if each["network.local.port"] == shop]
    others = [each for each in requests if each["network.local.port"] == crashing]
    assert {each.span.resource[CONTAINER] for each in of_shop} == {one.id}
    assert {each.span.resource[NAME] for each in others} == {"crasher"}
    told = [each.span.resource.get(CONTAINER) for each in others]
    assert {*told} - {None} <= ids
    # Each is told once, if at all.
    assert max(Counter(filter(None, told)).values(), default=1) == 1

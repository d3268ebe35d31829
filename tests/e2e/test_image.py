# SPDX-License-Identifier: Apache-2.0
"""The image that deploy/Dockerfile makes, run as deploy/daemonset.yaml says, but by podman.

Its base is Debian 13 without what the published one leaves out, made here: nothing is pulled.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from client import Client
from debian13 import ROOT, bootstrapped
from demo.receiver import Receiver
from podman import Podman
from servers import nginx
from stack import COUNT, agent, to, wait_for_requests
from support.namespaces import Network

pytestmark = pytest.mark.heavy

DEPLOY = ROOT / "deploy"
BASE = "docker.io/library/debian:13-slim"
IMAGE = "localhost/otelbpf:latest"
OTELBPF = Path("/opt/otelbpf/bin/otelbpf")
PORT = 8080
#: What is promised, and a little more than it was when this was written.
BYTES_MOST = 260_000_000
_MIB = 1 << 20

(AGENT,) = yaml.safe_load((DEPLOY / "daemonset.yaml").read_text())["spec"]["template"]["spec"][
    "containers"
]
#: What the published base leaves out of Debian.
_LEFT_OUT = (
    "usr/share/doc", "usr/share/info", "usr/share/locale", "usr/share/man", "var/cache/apt",
    "var/lib/apt/lists",
)  # fmt: skip


def with_rights(podman: Podman, *arguments: str | Path) -> list[str | Path]:
    """The start of a command that runs a container with the DaemonSet's rights and limits."""
    security, limits = AGENT["securityContext"], AGENT["resources"]["limits"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    return podman.run(
        "--rm", "--network=host", "--pid=host",
        "--cap-drop=ALL", f"--cap-add={','.join(security['capabilities']['add'])}",
        "--security-opt=no-new-privileges", "--read-only", "--read-only-tmpfs=false",
        "--tmpfs=/tmp", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:ro",
        f"--memory={bytes_of(limits['memory'])}", f"--cpus={limits['cpu']}",
        "--env=OTEL_*", *arguments,
    )  # fmt: skip


def bytes_of(quantity: str) -> int:
    """What Kubernetes means by it."""
    number = re.fullmatch(r"(\d+)Mi", quantity)
    assert number, quantity
    return int(number[1]) * _MIB


@pytest.fixture(scope="module")
def podman(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Podman]:
    """With the image, built."""
    directory = tmp_path_factory.mktemp("podman")
    made = Podman(directory)
    # Whose certificates this machine trusts, who builds trusts, too.
    tar = [
        "tar", "--create", *(f"--exclude=./{path}/*" for path in _LEFT_OUT),
        "--directory", bootstrapped(), ".", "--directory", "/", "./usr/local/share/ca-certificates",
    ]  # fmt: skip
    with subprocess.Popen(tar, stdout=subprocess.PIPE) as packed:
        assert packed.stdout
        made.say("podman", "import", "-", BASE, stdin=packed.stdout.fileno())
    assert packed.returncode == 0
    try:
        made.say(
            "buildah", "bud", "--isolation=chroot", "--network=host", "--pull-never",
            "--ignorefile", DEPLOY / "Dockerfile.dockerignore", "--file", DEPLOY / "Dockerfile",
            "--tag", IMAGE, ".",
        )  # fmt: skip
        yield made
    finally:
        made.say("podman", "rmi", "--all", "--force")
        shutil.rmtree(directory, ignore_errors=True)


def test_it_is_small_and_has_nothing_to_build_with(podman: Podman) -> None:
    size = int(podman.say("podman", "image", "inspect", "--format={{.Size}}", IMAGE))
    assert size < BYTES_MOST
    script = "command -v cc gcc clang pip; test ! -e /opt/otelbpf/bin/pip && echo none"
    command = with_rights(podman, "--entrypoint=sh", IMAGE, "-c", script)
    assert subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout == "none\n"


def test_it_checks_if_nothing_else_is_said(podman: Podman) -> None:
    checked = subprocess.run(with_rights(podman, IMAGE), stdout=subprocess.PIPE, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "  ok       programs: ready-made, " in checked.stdout
    assert "limited" not in checked.stdout
    assert checked.stdout.endswith("otelbpf can run here.\n")


def most_memory(pid: int) -> int:
    """The most that the cgroup of a process ever had, in bytes; of either version."""
    cgroups = [line.split(":", 2) for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    for _, controllers, path in cgroups:
        if controllers == "memory":
            file = Path(f"/sys/fs/cgroup/memory{path}/memory.max_usage_in_bytes")
            return int(file.read_text())
    (unified,) = (path for _, controllers, path in cgroups if not controllers)
    return int(Path(f"/sys/fs/cgroup{unified}/memory.peak").read_text())


def test_it_measures_within_its_limits(
    net: Network, receiver: Receiver, podman: Podman, tmp_path: Path
) -> None:
    """More load than it keeps up with, once each request is known to be told whole."""
    name = f"otelbpf-test-{os.getpid()}"
    files = f"--volume={tmp_path}:{tmp_path}"
    limit = bytes_of(AGENT["resources"]["limits"]["memory"])
    with nginx(net, tmp_path, PORT) as server:
        (tmp_path / "files/index.html").write_text("hello")
        with agent(
            tmp_path,
            *("--interface", net.server.interface, "--port", PORT),
            *("--netns", f"/proc/{server.pid}/ns/net"),
            environment=to(receiver) | {"OTEL_METRICS_EXPORTER": "otlp"},
            under=map(str, with_rights(podman, "--name", name, files, "--entrypoint=", IMAGE)),
            program=OTELBPF,
        ) as running:
            running.wait_ready()
            with Client.of(net, PORT) as client:
                for _ in range(COUNT):
                    client.ask("/")
            for request in wait_for_requests(receiver, COUNT):
                request.assert_complete()
                assert request.span.resource["service.name"] == "nginx"
            load = [*net.client.enter(), "wrk", "--threads=2", "--connections=100",
                    "--duration=5s", f"http://{net.server.ipv4}:{PORT}/"]  # fmt: skip
            subprocess.run(load, check=True, capture_output=True, timeout=60.0)
            pid = int(podman.say("podman", "inspect", "--format={{.State.Pid}}", name))
            most = most_memory(pid)
            ended = running.stop()
    assert ended.code == 0, ended.stderr
    ended.assert_adds_up()
    assert most < limit, f"{most / _MIB:.0f} of {limit / _MIB:.0f} MiB"

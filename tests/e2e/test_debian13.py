# SPDX-License-Identifier: Apache-2.0
"""otelbpf in Debian 13's user land, installed as README says: its Python, its libbpf, its BCC.

The kernel is this machine's. What goes wrong there by itself is tried here, too: no libbpf, and an
object that libbpf or the kernel refuses.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from debian13 import PACKAGES, ROOT, Debian13, debian13
from demo.processes import running
from demo.receiver import Receiver
from servers import Server
from stack import COUNT, agent, to, wait_for_requests
from support.namespaces import Network
from support.waiting import wait_until

pytestmark = pytest.mark.heavy

OTELBPF = Path("/opt/otelbpf/bin/otelbpf")
PYTHON = OTELBPF.with_name("python")
_INSTALL = re.compile(r"^## Install it\n.*?^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# BCC is the distribution's, for its Python: of what else that has none is to be seen.
_WITH_BCC = "mkdir /bcc; ln -s /usr/lib/python3/dist-packages/bcc /bcc/bcc"
_LO = f"{OTELBPF} run --interface lo --duration 0.1"
_UPSTREAMS = (
    "--upstream 127.0.0.1:9001 --upstream 127.0.0.1:9002 --upstream [fd00::1]:9003 --client-port 99"
)
_ROLES = {
    "servers": "--port 80",
    "upstreams": _UPSTREAMS,
    "both": f"--port 80 {_UPSTREAMS}",
}


def readme_commands() -> tuple[str, list[str]]:
    """What apt is to install, and the commands after it."""
    found = _INSTALL.search((ROOT / "README.md").read_text())
    assert found
    apt, *commands = (line.removeprefix("# ") for line in found[1].splitlines())
    return apt, commands


def said(user_land: Debian13, line: str, code: int = 0, timeout_s: float = 300.0) -> str:
    """What a shell's line prints; it ends with this code."""
    done = user_land.shell(line, timeout_s)
    assert done.returncode == code, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def user_land(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Debian13]:
    """With otelbpf in it, by README's commands."""
    apt, commands = readme_commands()
    assert apt == f"apt install {' '.join(PACKAGES)}"
    assert any(command.startswith(str(OTELBPF)) for command in commands)
    with debian13(tmp_path_factory.mktemp("user-land")) as made:
        for command in commands:
            said(made, command)
        said(made, _WITH_BCC)
        yield made


@pytest.fixture(scope="module")
def shared(user_land: Debian13) -> Path:
    """A directory that both see."""
    return user_land.directory


def test_it_is_debian_13_without_compilers(user_land: Debian13) -> None:
    assert "VERSION_CODENAME=trixie" in said(user_land, "cat /etc/os-release")
    assert said(user_land, f"{PYTHON} --version").startswith("Python 3.13")
    assert "No module named 'bcc'" in said(user_land, f"{PYTHON} -c 'import bcc'", 1)
    assert said(user_land, "command -v clang cc gcc || echo none") == "none\n"


def test_check_says_what_it_would_use(user_land: Debian13) -> None:
    checked = said(user_land, f"{OTELBPF} check")
    assert checked.endswith("otelbpf can run here.\n")
    assert "  ok       programs: ready-made, as the kernel has bpf_loop()\n" in checked
    assert "  ok       libbpf: 1." in checked


def options(net: Network, server: Server) -> tuple[str, ...]:
    netns = f"/proc/{server.pid}/ns/net"
    return ("--interface", net.server.interface, "--port", str(server.port), "--netns", netns)


def ask(net: Network, server: Server) -> None:
    with Client.of(net, server.port) as client:
        for number in range(COUNT):
            client.ask(f"/{number}")


def test_run(
    net: Network, server: Server, receiver: Receiver, user_land: Debian13, shared: Path
) -> None:
    with agent(
        shared,
        *options(net, server),
        environment=to(receiver),
        under=user_land.enter(),
        program=OTELBPF,
    ) as measuring:
        measuring.wait_ready()
        ask(net, server)
        requests = wait_for_requests(receiver, COUNT)
        measuring.stop().assert_clean(seen=COUNT)
    for request in requests:
        request.assert_complete()
        request.assert_tiled()
        assert request.span.resource["service.name"] == server.service


def test_top(net: Network, server: Server, user_land: Debian13, shared: Path) -> None:
    command = [*user_land.enter(), OTELBPF, "top", *options(net, server), "--interval", "0.2"]
    seen = f"seen {COUNT} = exported 0 + sampled out {COUNT} + lost 0"
    with running("top", command, shared) as top:
        wait_until(lambda: "no requests yet" in top.stdout.read_text(), "there is a first table")
        ask(net, server)
        wait_until(lambda: seen in top.stdout.read_text(), seen)
        assert top.stop(signal.SIGINT) == 0
    assert "GET /{id}" in top.stdout.read_text()


def test_the_demo_and_every_configuration_of_the_programs(user_land: Debian13) -> None:
    """With what they need besides: the demo's packages, the plugin, pytest."""
    pip = f"{OTELBPF.with_name('pip')} install --quiet"
    said(user_land, f"{pip} '.[demo]' ./plugin pytest pytest-rerunfailures")
    demo = said(user_land, f"PYTHONPATH=examples {PYTHON} -m demo")
    assert " 230 requests in " in demo
    tested = said(
        user_land,
        f"PYTHONPATH=/bcc {PYTHON} -m pytest -p no:cacheprovider tests/kernel/test_programs.py",
        timeout_s=600.0,
    )
    # All of it, whether ready-made or compiled by that BCC; nothing is skipped.
    assert re.search(r"^=+ \d+ passed in [^,]*=+$", tested, re.MULTILINE), tested


@pytest.mark.parametrize("role", _ROLES)
def test_its_bcc(user_land: Debian13, role: str) -> None:
    """It is 0.31, whose compiler is another one than Debian 12's; with metrics there is most to it.

    Four ports, and other limits, are among the configurations above.
    """
    variables = "PYTHONPATH=/bcc OTEL_TRACES_EXPORTER=none OTEL_METRICS_EXPORTER=console"
    told = said(user_land, f"{variables} {_LO} --loader bcc {_ROLES[role]}")
    assert told.endswith("otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0\n"), told


def without_libbpf(line: str) -> str:
    """The same where the package is not installed: in one shell, since others may run meanwhile."""
    return (
        "cd /usr/lib/x86_64-linux-gnu; mkdir /away; mv libbpf.so.1* /away; "
        f"trap 'mv /away/* .; rmdir /away' EXIT; {line}"
    )


def test_without_libbpf(user_land: Debian13) -> None:
    sentence = (
        "cannot load libbpf.so.1 (libbpf.so.1: cannot open shared object file: No such file or "
        "directory)"
    )
    remedy = "install it with `apt install libbpf1`"
    for loader in ("auto", "object", "bcc"):
        line = without_libbpf(f"{_LO} --port 80 --loader {loader}")
        assert said(user_land, line, 2) == f"otelbpf: {sentence}: {remedy}\n"
    checked = said(user_land, without_libbpf(f"{OTELBPF} check"), 1)
    assert f"  MISSING  libbpf: {sentence}\n           -> {remedy}\n" in checked
    assert checked.count("MISSING") == 1


def with_object(change: str, line: str) -> str:
    """The same with another object, as if this version came with it.

    Args:
        change: Python that makes it of `octets`.
    """
    script = (
        "import hashlib; octets = path.read_bytes(); told = path.with_suffix('.json'); "
        f"other = {change}; path.write_bytes(other); told.write_text(told.read_text().replace("
        "hashlib.sha256(octets).hexdigest(), hashlib.sha256(other).hexdigest()))"
    )
    find = "from otelbpf.kernel.objects import object_path; path = object_path()"
    return (
        f"object=$({PYTHON} -c '{find}; print(path.with_suffix(\"\"))'); "
        "for each in o json; do cp $object.$each $object.$each.kept; done; "
        "trap 'for each in o json; do mv $object.$each.kept $object.$each; done' EXIT; "
        f'{PYTHON} -c "{find}; {script}"; {line}'
    )


#: Each call of bpf_probe_read_kernel() calls what no kernel has.
REFUSED = "octets.replace(bytes.fromhex('8500000071000000'), bytes.fromhex('85000000ff7f0000'))"
_QUIET = "OTEL_TRACES_EXPORTER=none OTEL_METRICS_EXPORTER=none"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ("b'hello'", "libbpf cannot read the ready-made programs (BPF object format invalid)"),
        (
            REFUSED,
            "the kernel refused program tc_ingress ([Errno 22] Invalid argument), and its "
            "verifier's last words are \"invalid func ",
        ),
    ],
    ids=["unreadable", "refused"],
)
def test_an_object_that_is_refused(user_land: Debian13, change: str, what: str) -> None:
    """One sentence with the remedy; where BCC is, it compiles them."""
    told = said(user_land, with_object(change, f"{_QUIET} {_LO} --port 80"), 2)
    loading, sentence = told.splitlines()
    assert "otelbpf: loading" in loading
    assert sentence.startswith(f"otelbpf: {what}")
    _, remedy = sentence.removeprefix("otelbpf: ").split(": ")
    assert "install BCC with `apt install python3-bpfcc` and give --loader bcc, which " in remedy
    line = f"PYTHONPATH=/bcc {_QUIET} {_LO} --port 80"
    told = said(user_land, with_object(change, line))
    assert "; BCC compiles them here instead, in some seconds" in told
    assert told.endswith("otelbpf: seen 0 = exported 0 + sampled out 0 + lost 0\n"), told

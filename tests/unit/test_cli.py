# SPDX-License-Identifier: Apache-2.0
"""What the command line refuses: status 2, one line that says what to do, no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from otelbpf.agent import run as running
from otelbpf.agent.config import Config
from otelbpf.cli import commands as cli
from otelbpf.errors import KernelError, UsageError
from otelbpf.export.sender import QueueLimits
from otelbpf.host import rights
from otelbpf.host.interfaces import Xdp
from otelbpf.host.rights import Capability
from otelbpf.kernel import needs
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.loaders import Loader
from otelbpf.ledger.tally import Lost, Sums
from otelbpf.policy.capture import Capture
from otelbpf.policy.sampler import Sampler, Slow
from otelbpf.traces.description import StageStyle
from otelbpf.version import __version__

RUN = ("run", "--interface", "lo", "--port", "80")


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that would have been run: nothing is attached, no right is needed."""
    configs: list[Config] = []

    def run(config: Config, *_: object) -> Sums:
        configs.append(config)
        return Sums(23, 20, 2, {Lost.PARSER: 1})

    monkeypatch.setattr(needs, "require", lambda *_, **__: [])
    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return configs


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["otelbpf", *arguments])
    return cli.main()


REFUSED = [
    ((), "the following arguments are required: command; see `otelbpf --help`"),
    ((*RUN, "--keep-4xx"), "--keep-4xx says what --sample and --slow keep: give one of these, too"),
    ((*RUN, "--no-path", "--capture-query"), "--capture-query tells a path's query, and --no-path"),
    ((*RUN, "--no-path", "--routes", "found"), "--routes found tells paths, and --no-path none"),
    (
        (*RUN, "--client-address", "half"),
        "argument --client-address: invalid choice: 'half' (choose from 'whole', 'prefix', 'none')",
    ),
    (("walk",), "argument command: invalid choice: 'walk' (choose from "),
    (("--verbose", "check"), "unrecognized arguments: --verbose"),
    (("run",), "the following arguments are required: --interface"),
    (("run", "--port", "80"), "the following arguments are required: --interface"),
    (("run", "--interface", "lo"), "nothing to measure: give a server's --port, or an --upstream"),
    *(
        ((*RUN, "--upstream", text), f"argument --upstream: {text!r} is no HOST:PORT")
        for text in ("", "80", ":80", "[]:80", "::1:80", "fd00::1:80", "[::1:80")
    ),
    *(
        ((*RUN, "--upstream", f"here:{port}"), f"argument --upstream: {port!r} is no TCP port")
        for port in ("", "0", "65536", "http")
    ),
    ((*RUN, "--client-port", "0"), "argument --client-port: '0' is no TCP port"),
    *(
        ((*RUN, f"--service-name={name}"), f"argument --service-name: {name!r} is no name: it is ")
        for name in ("", "  ", "\u00a0", "a\nb", "a\x7f", "\x9b1m")
    ),
    ((*RUN, "--interface"), "argument --interface: expected one argument"),
    ((*RUN, "--dur", "1"), "unrecognized arguments: --dur 1"),  # no abbreviations
    ((*RUN, "more"), "unrecognized arguments: more"),
    *(
        ((*RUN, "--port", port), "argument --port: ")
        for port in ("0", "65536", "-1", "http", "80.0", "", "²", "1e3", "9" * 5000)
    ),
    ((*RUN, "--port", "0"), "'0' is no TCP port: it is a number from 1 to 65535; see `otelbpf run"),
    *(
        ((*RUN, option, seconds), f"argument {option}: {seconds!r} is no number of seconds above 0")
        for option in ("--duration", "--idle-timeout")
        for seconds in ("0", "nan", "inf", "1e9", "soon", "")
    ),
    ((*RUN, "--duration=-1"), "argument --duration: '-1' is no number of seconds above 0"),
    *(
        ((*RUN, option, n), f"argument {option}: {n!r} is no number from 16 to {most}")
        for option, most in (("--connections", 524_288), ("--ring", 65_536))
        for n in ("15", f"{most + 1}", "1.5", "many", "")
    ),
    ((*RUN, "--stages", "events"), "argument --stages: invalid choice: 'events'"),
    ((*RUN, "--xdp", "native"), "argument --xdp: invalid choice: 'native'"),
    *(
        ((*RUN, option, path), f"argument {option}: {path!r} cannot be written")
        for option in ("--ready-file", "--sums-file")
        for path in ("/missing/file", "/", ".")
    ),
    *(
        ((*RUN, "--health", port), f"argument --health: {port!r} is no TCP port")
        for port in ("", "0", "65536", "here", "[]")
    ),
    *(
        ((*RUN, "--health", f"here:{port}"), f"argument --health: {port!r} is no TCP port")
        for port in ("", "0", "65536", "http")
    ),
    *(
        ((*RUN, "--health", text), f"argument --health: {text!r} is no HOST:PORT")
        for text in (":80", "[]:80", "::1", "::1:80", "[::1", "[::1]")
    ),
    *(
        ((*RUN, "--sample", n), f"argument --sample: {n!r} is no share: one in a hundred is 1/100")
        for n in ("0", "1", "0.1", "2/3", "1/0", "1/", "1/x", "1/-1", "1/9999999999", "10%", "")
    ),
    *(
        ((*RUN, "--slow", time), f"argument --slow: {time!r} is no time, or no route and time")
        for time in ("5", "ms", "5m", "1e3ms", "5 ms", "=5ms", "/a=", "/a=5", "", "²ms")
    ),
    *(
        ((*RUN, option, value), f"argument {option}: 'users' is no route: it begins with a slash")
        for option, value in (("--slow", "users=5ms"), ("--route", "users"))
    ),
    ((*RUN, "--route", "/{}"), "argument --route: '/{}' is no route"),
    *(
        ((*RUN, "--series", n), f"argument --series: {n!r} is no number from 8 to 4096")
        for n in ("7", "4097", "many", "")
    ),
    *(
        (
            (command, *RUN[1:], option, "1"),
            f"unrecognized arguments: {option} 1; {whose}see `otelbpf {command} --help`",
        )
        for command, option, whose in (
            ("top", "--output", "--output is an option of `otelbpf run`; "),
            ("run", "--sort", "--sort is an option of `otelbpf top`; "),
            ("top", "--nonsense", ""),
        )
    ),
    ((*RUN, "--interval=1"), "unrecognized arguments: --interval=1; --interval is an option of"),
    (
        ("check", "--port", "80"),
        "unrecognized arguments: --port 80; --port is an option of `otelbpf run` and "
        "`otelbpf top`; see `otelbpf check --help`",
    ),
    (("--output", "x", "run"), "argument command: invalid choice: 'x' (choose from "),
]


@pytest.mark.parametrize(("arguments", "said"), REFUSED)
def test_refused(
    arguments: tuple[str, ...],
    said: str,
    ran: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call(monkeypatch, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.endswith("--help`\n")
    assert err.startswith("otelbpf: ")
    assert said in err
    assert ran == []


@pytest.mark.parametrize(
    ("arguments", "upstreams", "client_ports"),
    [
        (("--upstream", "10.0.0.1:80"), (("10.0.0.1", 80),), ()),
        (
            ("--upstream", "[fd00::1]:80", "--upstream", "here.example:81"),
            (("fd00::1", 80), ("here.example", 81)),
            (),
        ),
        (("--upstream", "here:80", "--upstream", "here:80"), (("here", 80),), ()),
        (("--client-port", "80", "--client-port", "81"), (), (80, 81)),
    ],
)
def test_upstreams_need_no_port_of_a_server(
    arguments: tuple[str, ...],
    upstreams: tuple[tuple[str, int], ...],
    client_ports: tuple[int, ...],
    ran: list[Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert call(monkeypatch, "run", "--interface", "lo", *arguments) == 0
    assert (ran[0].ports, ran[0].upstreams, ran[0].client_ports) == ((), upstreams, client_ports)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("13134", ("127.0.0.1", 13_134)),
        ("0.0.0.0:80", ("0.0.0.0", 80)),
        ("here.example:81", ("here.example", 81)),
        ("[::1]:82", ("::1", 82)),
    ],
)
def test_where_probes_are_answered(
    text: str, address: tuple[str, int], ran: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert call(monkeypatch, *RUN, "--health", text) == 0
    assert ran[0].health == address


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("OTEL_BSP_MAX_QUEUE_SIZE", "0", "OTEL_BSP_MAX_QUEUE_SIZE=0 is no whole number from 1"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "²", "OTEL_BSP_EXPORT_TIMEOUT=² is no whole number from 1"),
    ],
)
def test_refused_variables(
    variable: str,
    value: str,
    said: str,
    ran: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert call(monkeypatch, *RUN) == 2
    assert capsys.readouterr().err.startswith(f"otelbpf: {said}")
    assert ran == []


@pytest.mark.parametrize(
    "variables",
    [
        {"OTEL_TRACES_EXPORTER": "otlp,console"},
        {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/json"},
        {"OTEL_TRACES_SAMPLER": "xray"},
        {"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "2"},
    ],
)
def test_variables_are_refused_before_anything_is_loaded(
    variables: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def load(*_: object) -> None:
        pytest.fail("loaded")

    monkeypatch.setattr(needs, "require", lambda *_, **__: [])
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    monkeypatch.setattr(running, "Programs", load)
    monkeypatch.setattr(running, "find_netns", load)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert call(monkeypatch, *RUN) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"otelbpf: {list(variables)[-1]}={list(variables.values())[-1]} ")


@pytest.mark.parametrize("error", [UsageError, KernelError])
def test_the_agents_refusal(
    error: type,
    ran: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(*_: object) -> None:
        raise error("cannot do it: try another way")

    monkeypatch.setattr(running, "run", run)
    assert call(monkeypatch, *RUN) == 2
    assert capsys.readouterr().err == "otelbpf: cannot do it: try another way\n"


def test_without_rights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rights, "held", lambda: {Capability.CAP_BPF, Capability.CAP_NET_ADMIN})
    assert call(monkeypatch, *RUN) == 2
    assert capsys.readouterr().err == (
        "otelbpf: this process does not have CAP_SYS_ADMIN (loading programs, proving hooks, "
        "entering namespaces): run otelbpf as root (`sudo otelbpf …`), or give its container these "
        "capabilities\n"
    )


def test_what_is_limited_is_said_and_does_not_keep_it_from_running(
    ran: list[Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        needs, "require", lambda *_, **__: [KernelError("it sees nothing", "give it eyes")]
    )
    assert call(monkeypatch, *RUN) == 0
    assert capsys.readouterr().err.startswith(
        "otelbpf: limited: it sees nothing: give it eyes\notelbpf: seen "
    )


def test_the_defaults(
    ran: list[Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, *RUN) == 0
    limits = Limits(65_536, 49_152, series=256)
    assert ran == [Config(interfaces=("lo",), ports=(80,), limits=limits)]
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "otelbpf: seen 23 = exported 20 + sampled out 2 + lost 1 (parser 1)\n"


def test_every_option_arrives(
    ran: list[Config], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "77")
    arguments = (
        "--interface",
        "eth1",
        "--interface",
        "lo",
        "--port",
        "65535",
        "--port",
        "80",
        "--netns",
        "blue",
        "--loader",
        "bcc",
        "--duration",
        "1.5",
        "--stages",
        "attributes",
        "--capture-query",
        "--service-name",
        "shop",
        "--xdp",
        "off",
        "--idle-timeout",
        "0.5",
        "--connections",
        "16",
        "--ring",
        "1000",
        "--output",
        "spans.jsonl",
        "--ready-file",
        str(tmp_path / "ready"),
        "--sums-file",
        str(tmp_path / "sums"),
        "--sample",
        "1/4",
        "--slow",
        "5ms",
        "--slow",
        "/up=1.5s",
        "--route",
        "/a/{b}",
        "--series",
        "8",
        "--keep-4xx",
        "--health",
        "81",
    )
    assert call(monkeypatch, *RUN, *arguments) == 0
    assert ran == [
        Config(
            interfaces=("lo", "eth1"),
            ports=(80, 65_535),
            netns="blue",
            duration_s=1.5,
            loader=Loader.BCC,
            xdp=Xdp.OFF,
            stages=StageStyle.ATTRIBUTES,
            capture=Capture(query=True),
            idle_timeout_s=0.5,
            service_name="shop",
            output="spans.jsonl",
            ready_file=tmp_path / "ready",
            health=("127.0.0.1", 81),
            sums_file=tmp_path / "sums",
            limits=Limits(16, 1000, series=8),
            sampler=Sampler(1 << 62, keep_errors=True),
            routes=("/a/{b}",),
            found_routes=8,
            slow=Slow(5_000_000, (("/up", 1_500_000_000),)),
            keep_4xx=True,
            queue=QueueLimits(requests=77),
        )
    ]


def test_routes_may_be_only_those_that_are_given(
    ran: list[Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With or without metrics, which the number of found routes is that of."""
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "none")
    for arguments in (
        ("--routes", "given"),
        ("--no-path",),
        ("--routes", "found", "--series", "9"),
        (),
    ):
        assert call(monkeypatch, *RUN, *arguments) == 0
    assert [(config.found_routes, config.limits.series) for config in ran] == [
        (0, 0), (0, 0), (9, 0), (256, 0)
    ]  # fmt: skip


def test_as_a_command() -> None:
    """A process of its own: nothing but the one line comes out of it."""
    command = [sys.executable, "-m", "otelbpf.cli"]
    done = subprocess.run([*command, *RUN, "--port", "0"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    done = subprocess.run([*command, "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"otelbpf {__version__}\n", "")


@pytest.mark.parametrize("closed", [False, True])
def test_nobody_hears_what_it_says(closed: bool) -> None:
    """The exit status is the same, and what was to be written to is not written to."""
    command = [sys.executable, "-m", "otelbpf", *RUN, "--port", "0"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            ["sh", "-c", 'exec "$@" 2>&-', "sh", *command] if closed else command,
            stdout=subprocess.PIPE, stderr=full,
        )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, b"")


def test_a_name_that_is_not_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    """All that is exported has to be."""
    for option in ("--service-name=\udcff", "--route=/\udcff", "--slow=/\udcff=1s"):
        assert call(monkeypatch, *RUN, option) == 2

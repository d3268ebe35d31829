# SPDX-License-Identifier: Apache-2.0
"""What the command line takes: commands, options, and what their values may be."""

from __future__ import annotations

import argparse
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path

from otelbpf.cli.parser import Command, Parser, Repeated
from otelbpf.errors import UsageError
from otelbpf.kernel.limits import DEFAULT, MOST
from otelbpf.policy import capture, proxies
from otelbpf.policy.routes import Routes
from otelbpf.version import __version__


def _is_number(text: str) -> bool:
    """Only digits that int() reads (a superscript is a digit too), and no more than it reads."""
    return text.isascii() and text.isdigit() and len(text) < 20


def _port(text: str) -> int:
    if not _is_number(text) or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no TCP port: it is a number from 1 to 65535")
    return int(text)


def _host_and_port(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    is_address = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if is_address else host
    if not name or (":" in name and not is_address):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HOST:PORT: an IPv6 address is written in brackets, as in [::1]:80"
        )
    return name, _port(port)


def _own_address(text: str) -> tuple[str, int]:
    """Without a host it is one of this machine's that nobody else reaches."""
    return _host_and_port(text) if ":" in text else ("127.0.0.1", _port(text))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def _number(least: int, most: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not _is_number(text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least} to {most}")
        return int(text)

    return number


def _one_in(text: str) -> int:
    one, _, n = text.partition("/")
    if one != "1" or not _is_number(n) or not 1 <= int(n) <= 1_000_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no share: one in a hundred is 1/100")
    return int(n)


_UNITS_NS = {"us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}


def _slow(text: str) -> tuple[str, int]:
    """The route, or nothing, and ns."""
    route, _, time = text.rpartition("=")
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,9})?)(us|ms|s)", time, re.ASCII)
    if not match or text.startswith("="):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no time, or no route and time: write 5ms, 1.5s, or /checkout=200ms"
        )
    return route and _route(route), round(float(match[1]) * _UNITS_NS[match[2]])


def _text(text: str) -> str:
    """What is exported has to be UTF-8, and an argument may be anything."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is not UTF-8") from None
    return text


def _name(text: str) -> str:
    if not text.strip() or any(unicodedata.category(each) == "Cc" for each in _text(text)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no name: it is blank, or has control characters"
        )
    return text


def _route(text: str) -> str:
    try:
        Routes((_text(text),))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _network(text: str) -> proxies.Network:
    try:
        return proxies.network(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _writable_path(text: str) -> Path:
    path = Path(text)
    try:
        fits = path.absolute().parent.is_dir() and (path.is_file() or not path.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written: {error.strerror}") from error
    if not fits:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: its directory does not exist, or it is no ordinary file"
        )
    return path


def _add_loader(add: Callable[..., object]) -> None:
    add(
        "--loader",
        choices=("auto", "object", "bcc"),
        default="auto",
        help="where the programs come from. auto (default): ready-made, if this kernel takes them, "
        "else bcc; object: ready-made; bcc: BCC compiles them here (python3-bpfcc), which takes "
        "some seconds",
    )


def _add_config(add: Callable[..., object]) -> None:
    add(
        "--config",
        metavar="FILE",
        help="also take options from this YAML file, whose keys are their names (port: [80, 81]); "
        "what is given here holds instead of what the file says of the same option; `run` reads it "
        "again at SIGHUP",
    )


def _add_forwarded_by(add: Callable[..., object]) -> None:
    add(
        "--forwarded-by",
        action=Repeated,
        type=_network,
        metavar="NETWORK",
        help="whoever is there (192.0.2.7, 10.0.0.0/8) is a proxy that is believed where a header "
        "says for whom it has forwarded a request; may be repeated (default: nobody is)",
    )


def _add_tables(add: Callable[..., object]) -> None:
    """How long the kernel's tables are."""
    add(
        "--series",
        type=_number(8, MOST.series),
        default=DEFAULT.series,
        metavar="N",
        help="how many combinations of service, route, method and status metrics and `top` tell "
        "apart; and how many found routes are in spans (default: 256)",
    )
    add(
        "--connections",
        type=_number(16, MOST.connections),
        default=DEFAULT.connections,
        metavar="N",
        help="connections remembered at once (default: 65536)",
    )
    add(
        "--ring",
        type=_number(16, MOST.ring),
        default=DEFAULT.ring,
        metavar="N",
        help="finished requests that may wait for the agent to read them (default: 49152)",
    )


def _measuring() -> Command:
    """What is measured, and how: the options of all commands that run an agent."""
    parser = Command(add_help=False, allow_abbrev=False)
    add = parser.add_argument
    _add_config(add)
    add(
        "--interface",
        action=Repeated,
        metavar="IF",
        help="network interface that requests come in on, or leave by to upstreams; may be "
        "repeated",
    )
    add(
        "--port",
        action=Repeated,
        type=_port,
        metavar="P",
        help="TCP port the server listens on; may be repeated",
    )
    add(
        "--upstream",
        action=Repeated,
        type=_host_and_port,
        metavar="HOST:PORT",
        help="also measure the requests that are sent to there, as CLIENT spans; a "
        "name is looked up once, at the start; may be repeated",
    )
    add(
        "--client-port",
        action=Repeated,
        type=_port,
        metavar="P",
        help="the same, for this TCP port at whatever address; may be repeated",
    )
    add(
        "--proxy-protocol",
        action=Repeated,
        type=_network,
        metavar="NETWORK",
        help="whoever is there (192.0.2.7, 10.0.0.0/8) may begin connections with a header of the "
        "PROXY protocol, which then says who the client is; may be repeated (default: nobody may)",
    )
    _add_forwarded_by(add)
    add(
        "--forwarded-header",
        choices=tuple(header.value for header in proxies.Header),
        help="the header in which all of them say it (default: x-forwarded-for)",
    )
    add(
        "--netns",
        metavar="NAME|PATH",
        help="network namespace of the interfaces and the server (default: this one)",
    )
    add("--duration", type=_seconds, metavar="S", help="stop by itself after S seconds")
    add(
        "--service-name",
        type=_name,
        metavar="NAME",
        help="service.name of all that is measured (default: each process's own: its "
        "OTEL_SERVICE_NAME, else its systemd service, else what it runs)",
    )
    _add_loader(add)
    add(
        "--hooks",
        choices=("auto", "tracepoint", "fentry", "kprobe"),
        default="auto",
        help="how to attach where the kernel offers several ways (default: the one "
        "that costs least); stamps that have no such way will be absent",
    )
    add(
        "--handler",
        action=Repeated,
        metavar="TARGET:FUNCTION",
        help="also stamp this function as the requests' handler; TARGET is an "
        "executable, a library or a process's number, FUNCTION may be a pattern "
        "(nginx:ngx_http_process_request, 1234:main.handle) or a pair of USDT probes "
        "(PROVIDER:START,END); may be repeated",
    )
    add(
        "--xdp",
        choices=("auto", "on", "off"),
        default="auto",
        help="where to attach to XDP, which the nic stamp comes from. auto (default): where the "
        "driver has it, its slot is free and it slows nothing down, so not on a veth; on: on all "
        "interfaces, if need be in the kernel's generic way; off: nowhere",
    )
    add(
        "--route",
        action=Repeated,
        type=_route,
        metavar="TEMPLATE",
        help="a route that metrics, `top` and spans tell apart (/users/{name}, /static/*); may be "
        "repeated",
    )
    add(
        "--routes",
        choices=("found", "given"),
        help="what the routes of paths are that fit no --route. found (default): the path with "
        "{id} for each part that looks like one; given: none",
    )
    add(
        "--no-path",
        action="store_true",
        help="tell no path, only which --route it fits: found routes are paths, too, and are not "
        "looked for",
    )
    add(
        "--idle-timeout",
        type=_seconds,
        default=120.0,
        metavar="S",
        help="end an unanswered request after S silent seconds if its socket is not known to be "
        "open: while that is open the request is kept, however long it waits (default: 120)",
    )
    _add_tables(add)
    return parser


def build_parser() -> Parser:
    """The parser of `otelbpf`; what it refuses is a UsageError."""
    parser = Parser(
        prog="otelbpf",
        description="Shows where each HTTP request's time goes between the network card and the "
        "handler, as OpenTelemetry spans.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"otelbpf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Command)
    measuring = _measuring()

    run = commands.add_parser(
        "run",
        parents=[measuring],
        help="attach and export until stopped",
        description="Attaches to the kernel and exports spans until SIGINT, SIGTERM or --duration. "
        "Where they go is set by the standard OTEL_* variables.",
        allow_abbrev=False,
    )
    run.add_argument(
        "--stages",
        choices=("spans", "attributes"),
        default="spans",
        help="stages as child spans, or as attributes of the request's span",
    )
    run.add_argument(
        "--capture-query",
        action="store_true",
        help="keep the part of the URL after `?`, which may hold secrets",
    )
    run.add_argument(
        "--no-user-agent",
        action="store_true",
        help="do not say how clients name themselves",
    )
    run.add_argument(
        "--client-address",
        choices=tuple(each.value for each in capture.Clients),
        default="whole",
        help="how much of the addresses of those who ask is told. prefix: the first address of "
        "their network, /24 of IPv4 and /48 of IPv6; none: nothing; of both no port "
        "(default: whole)",
    )
    run.add_argument(
        "--sample",
        type=_one_in,
        metavar="1/N",
        help="keep one in N traces that no caller has decided about, and all errors "
        "(default: as OTEL_TRACES_SAMPLER says); metrics are of all requests",
    )
    run.add_argument(
        "--slow",
        action=Repeated,
        type=_slow,
        metavar="[ROUTE=]TIME",
        help="also keep requests that took this long (5ms, 1.5s), of this route or of "
        "all others, and all errors; may be repeated",
    )
    run.add_argument(
        "--keep-4xx",
        action="store_true",
        help="--sample and --slow also keep what servers answer with 4xx, like an upstream's 4xx",
    )
    run.add_argument(
        "--ignore-route",
        action=Repeated,
        type=_route,
        metavar="TEMPLATE",
        help="make no spans of requests whose path fits it (/healthz, /internal/*), not of slow "
        "ones and errors either; metrics have them, and the sums count them as sampled out; may be "
        "repeated",
    )
    run.add_argument(
        "--output",
        metavar="FILE",
        help="where OTEL_TRACES_EXPORTER=otlp_json_file appends (default: stdout)",
    )
    run.add_argument(
        "--ready-file",
        type=_writable_path,
        metavar="PATH",
        help="is there while all is measured that was asked for, and renewed each "
        "second: one that is older than some seconds was left by an agent that was "
        "killed or hangs",
    )
    run.add_argument(
        "--health",
        type=_own_address,
        metavar="[HOST:]PORT",
        help="answer probes there: GET /livez says 200 unless only a restart helps, "
        "GET /readyz while all is measured that was asked for, else both say 503 and "
        "why (default host: 127.0.0.1)",
    )
    run.add_argument(
        "--sums-file", type=_writable_path, metavar="PATH", help="gets the final sums as JSON"
    )

    top = commands.add_parser(
        "top",
        parents=[measuring],
        help="show the routes in this terminal; exports nothing",
        description="Attaches to the kernel and shows, for each route, how many requests there "
        "are, how long they take and where that time goes, until q, SIGINT, SIGTERM or --duration. "
        "No span is made, and nothing is exported. Quantiles are to within 9%. Where standard "
        "output is no terminal, the table of each interval is printed. The last table is of all "
        "requests.",
        allow_abbrev=False,
    )
    top.add_argument(
        "--interval",
        type=_seconds,
        default=1.0,
        metavar="S",
        help="what each table is of, in seconds (default: 1)",
    )
    top.add_argument(
        "--sort",
        choices=("rate", "p99", "errors", "time"),
        default="rate",
        help="what comes first (default: rate); time: what took the most of it in all",
    )

    check = commands.add_parser(
        "check",
        help="what this kernel offers; attaches nothing",
        description="Shows which hook each stamp gets on this kernel, and what is missing. "
        "Attaches nothing. Exit status 0: otelbpf can run; 1: it cannot.",
        allow_abbrev=False,
    )
    _add_config(check.add_argument)
    check.add_argument(
        "--interface",
        action=Repeated,
        metavar="IF",
        help="also look at this interface; may be repeated",
    )
    check.add_argument("--netns", metavar="NAME|PATH", help="network namespace of the interfaces")
    _add_loader(check.add_argument)
    _add_forwarded_by(check.add_argument)
    _add_tables(check.add_argument)
    check.add_argument("--json", action="store_true", help="as JSON")

    report = commands.add_parser(
        "report",
        help="make a page to look at recorded spans",
        description="Makes one HTML page from recorded spans, for any browser: where the time of "
        "each route's requests goes, the slowest ones' waterfalls and ledgers, and what was lost. "
        "The page fetches nothing. Needs no root.",
        allow_abbrev=False,
    )
    report.add_argument("page", type=_writable_path, metavar="FILE.html", help="the page to write")
    report.add_argument(
        "--spans",
        action="append",
        required=True,
        type=Path,
        metavar="SPANS",
        help="what OTEL_TRACES_EXPORTER=otlp_json_file or the collector's file "
        "exporter wrote (OTLP JSON, one export a line); may be repeated",
    )
    report.add_argument(
        "--sums",
        type=Path,
        metavar="SUMS",
        help="what `otelbpf run --sums-file` wrote of the same run",
    )
    for command in commands.choices.values():
        command.all = commands.choices.values()
    parser.commands = commands.choices
    return parser

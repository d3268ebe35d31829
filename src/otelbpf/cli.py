# SPDX-License-Identifier: Apache-2.0
"""The command line: the only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from otelbpf.errors import OtelbpfError, UsageError
from otelbpf.routes import Routes
from otelbpf.version import __version__

if TYPE_CHECKING:
    from otelbpf.config import Config

_EXIT_REFUSED = 2
# What was left apart, by its name in Sums.joins.
_NOT_JOINED = {
    "marks_unknown": "spans of applications have no request's span above them: they were not of a "
    "request in flight, or not of the trace that it carries",
    "marks_ambiguous": "spans of applications have no request's span above them: several requests "
    "were in flight on the connection, so which one each was of is not known",
    "causes_ambiguous": "requests to upstreams start traces of their own: their threads serve "
    "several requests, so which one each was for is not known",
}


class _Stop:
    """Whether to stop. Unlike an Event it has no lock, which a signal handler could find taken."""

    _requested = False

    def is_set(self) -> bool:
        return self._requested

    def set(self) -> None:
        self._requested = True

    def on_signals(self) -> None:
        """Stops in order at SIGINT or SIGTERM, and at once at a second Ctrl-C."""

        def handle(number: int, _frame: object) -> None:
            self.set()
            if number == signal.SIGINT:
                signal.signal(signal.SIGINT, signal.SIG_DFL)

        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handle)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage text before it."""

    def error(self, message: str) -> None:
        raise UsageError(f"{message}; see `{self.prog} --help`")


def _is_number(text: str) -> bool:
    """Only digits that int() reads (a superscript is a digit too), and no more than it reads."""
    return text.isascii() and text.isdigit() and len(text) < 20


def _port(text: str) -> int:
    if not _is_number(text) or not 1 <= int(text) <= 65_535:
        raise argparse.ArgumentTypeError(f"{text!r} is no TCP port: it is a number from 1 to 65535")
    return int(text)


def _upstream(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    is_address = host.startswith("[") and host.endswith("]")
    name = host[1:-1] if is_address else host
    if not name or (":" in name and not is_address):
        raise argparse.ArgumentTypeError(
            f"{text!r} is no HOST:PORT: an IPv6 address is written in brackets, as in [::1]:80"
        )
    return name, _port(port)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0.0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds above 0")
    return value


def _connections(text: str) -> int:
    if not _is_number(text) or not 16 <= int(text) <= 1 << 22:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 16 to {1 << 22}")
    return int(text)


def _ring_bytes(text: str) -> int:
    mebibytes = int(text) if _is_number(text) else 0
    if mebibytes < 1 or mebibytes > 1024 or mebibytes & (mebibytes - 1):
        raise argparse.ArgumentTypeError(f"{text!r} is no power of two from 1 to 1024")
    return mebibytes << 20


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


def _route(text: str) -> str:
    try:
        Routes((text,))
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _series(text: str) -> int:
    if not _is_number(text) or not 8 <= int(text) <= 4096:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 8 to 4096")
    return int(text)


def _writable_path(text: str) -> Path:
    path = Path(text)
    try:
        fits = path.absolute().parent.is_dir() and (path.is_file() or not path.exists())
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: {error.strerror}"
        ) from error
    if not fits:
        raise argparse.ArgumentTypeError(
            f"{text!r} cannot be written: its directory does not exist, or it is no ordinary file"
        )
    return path


def _build_parser() -> _Parser:
    parser = _Parser(
        prog="otelbpf",
        description="Shows where each HTTP request's time goes between the network card and the "
        "handler, as OpenTelemetry spans.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"otelbpf {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    run = commands.add_parser(
        "run",
        help="attach and export until stopped",
        description="Attaches to the kernel and exports spans until SIGINT, SIGTERM or --duration. "
        "Where they go is set by the standard OTEL_* variables.",
        allow_abbrev=False,
    )
    run.add_argument("--interface", action="append", required=True, metavar="IF",
                     help="network interface that requests come in on, or leave by to upstreams; "
                     "may be repeated")
    run.add_argument("--port", action="append", default=[], type=_port, metavar="P",
                     help="TCP port the server listens on; may be repeated")
    run.add_argument("--upstream", action="append", default=[], type=_upstream,
                     metavar="HOST:PORT",
                     help="also measure the requests that are sent to there, as CLIENT spans; a "
                     "name is looked up once, at the start; may be repeated")
    run.add_argument("--client-port", action="append", default=[], type=_port, metavar="P",
                     help="the same, for this TCP port at whatever address; may be repeated")
    run.add_argument("--netns", metavar="NAME|PATH",
                     help="network namespace of the interfaces and the server (default: this one)")
    run.add_argument("--duration", type=_seconds, metavar="S",
                     help="stop by itself after S seconds")
    run.add_argument("--stages", choices=("spans", "attributes"), default="spans",
                     help="stages as child spans, or as attributes of the request's span")
    run.add_argument("--capture-query", action="store_true",
                     help="keep the part of the URL after `?`, which may hold secrets")
    run.add_argument("--service-name", metavar="NAME",
                     help="service.name (default: OTEL_SERVICE_NAME, else the server process's)")
    run.add_argument("--hooks", choices=("auto", "tracepoint", "fentry", "kprobe"), default="auto",
                     help="how to attach where the kernel offers several ways (default: the one "
                     "that costs least); stamps that have no such way will be absent")
    run.add_argument("--handler", action="append", default=[], metavar="TARGET:FUNCTION",
                     help="also stamp this function as the requests' handler; TARGET is an "
                     "executable, a library or a process's number, FUNCTION may be a pattern "
                     "(nginx:ngx_http_process_request, 1234:main.handle) or a pair of USDT probes "
                     "(PROVIDER:START,END); may be repeated")
    run.add_argument("--xdp", choices=("auto", "off"), default="auto",
                     help="off: leave the XDP slot alone, and do without the nic stamp")
    run.add_argument("--sample", type=_one_in, metavar="1/N",
                     help="keep one in N traces that no caller has decided about, and all errors "
                     "(default: as OTEL_TRACES_SAMPLER says); metrics are of all requests")
    run.add_argument("--slow", action="append", default=[], type=_slow, metavar="[ROUTE=]TIME",
                     help="also keep requests that took this long (5ms, 1.5s), of this route or of "
                     "all others, and all errors; may be repeated")
    run.add_argument("--route", action="append", default=[], type=_route, metavar="TEMPLATE",
                     help="a route that metrics and the names of spans tell apart (/users/{name}, "
                     "/static/*); metrics fold the ids in paths that fit none; may be repeated")
    run.add_argument("--series", type=_series, default=256, metavar="N",
                     help="how many combinations of service, route, method and class of status "
                     "metrics tell apart (default: 256)")
    run.add_argument("--idle-timeout", type=_seconds, default=120.0, metavar="S",
                     help="end an unanswered request after S silent seconds (default: 120)")
    run.add_argument("--connections", type=_connections, default=65_536, metavar="N",
                     help="connections remembered at once (default: 65536)")
    run.add_argument("--ring-mib", type=_ring_bytes, default=32 << 20, metavar="MIB",
                     dest="ring_bytes", help="size of the ring buffer (default: 32)")
    run.add_argument("--output", metavar="FILE",
                     help="where OTEL_TRACES_EXPORTER=otlp_json_file appends (default: stdout)")
    run.add_argument("--ready-file", type=_writable_path, metavar="PATH",
                     help="made once everything is attached, removed when it no longer is")
    run.add_argument("--sums-file", type=_writable_path, metavar="PATH",
                     help="gets the final sums as JSON")

    check = commands.add_parser(
        "check",
        help="what this kernel offers; attaches nothing",
        description="Shows which hook each stamp gets on this kernel, and what is missing. "
        "Attaches nothing. Exit status 0: otelbpf can run; 1: it cannot.",
        allow_abbrev=False,
    )
    check.add_argument("--interface", action="append", default=[], metavar="IF",
                       help="also look at this interface; may be repeated")
    check.add_argument("--netns", metavar="NAME|PATH", help="network namespace of the interfaces")
    check.add_argument("--json", action="store_true", help="as JSON")

    report = commands.add_parser(
        "report",
        help="make a page to look at recorded spans",
        description="Makes one HTML page from recorded spans, for any browser: where the time of "
        "each route's requests goes, the slowest ones' waterfalls and ledgers, and what was lost. "
        "The page fetches nothing. Needs no root.",
        allow_abbrev=False,
    )
    report.add_argument("page", type=_writable_path, metavar="FILE.html",
                        help="the page to write")
    report.add_argument("--spans", action="append", required=True, type=Path, metavar="SPANS",
                        help="what OTEL_TRACES_EXPORTER=otlp_json_file or the collector's file "
                        "exporter wrote (OTLP JSON, one export a line); may be repeated")
    report.add_argument("--sums", type=Path, metavar="SUMS",
                        help="what `otelbpf run --sums-file` wrote of the same run")
    return parser


def _measured(config: Config) -> str:
    """Whose requests are measured, for people."""
    hosts = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
             for host, port in config.upstreams]
    hosts += [f"*:{port}" for port in config.client_ports]
    parts = [f"port {', '.join(map(str, config.ports))}"] if config.ports else []
    parts += [f"upstream {', '.join(hosts)}"] if hosts else []
    return " and ".join(parts)


def _run(arguments: argparse.Namespace) -> int:
    from otelbpf import check

    if not (arguments.port or arguments.upstream or arguments.client_port):
        raise UsageError(
            "nothing to measure: give a server's --port, or an --upstream or a --client-port that "
            "requests are sent to; see `otelbpf run --help`"
        )
    check.require_rights()
    # Imported late: these take half a second, and bad options should not wait for them.
    from otelbpf.agent import Running, run
    from otelbpf.config import Config
    from otelbpf.exporter import QueueLimits
    from otelbpf.hooks import Mechanism
    from otelbpf.loader import Limits
    from otelbpf.sampler import Sampler, Slow
    from otelbpf.spans import StageStyle

    slow = Slow.of_times(arguments.slow)
    config = Config(
        interfaces=tuple(dict.fromkeys(arguments.interface)),
        ports=tuple(dict.fromkeys(arguments.port)),
        upstreams=tuple(dict.fromkeys(arguments.upstream)),
        client_ports=tuple(dict.fromkeys(arguments.client_port)),
        netns=arguments.netns,
        duration_s=arguments.duration,
        hooks=None if arguments.hooks == "auto" else Mechanism(arguments.hooks),
        handlers=tuple(dict.fromkeys(arguments.handler)),
        xdp=arguments.xdp != "off",
        stages=StageStyle(arguments.stages),
        capture_query=arguments.capture_query,
        idle_timeout_s=arguments.idle_timeout,
        service_name=arguments.service_name,
        sampler=Sampler.one_in(arguments.sample) if arguments.sample else None,
        slow=slow,
        routes=tuple(dict.fromkeys(arguments.route)),
        output=arguments.output,
        ready_file=arguments.ready_file,
        sums_file=arguments.sums_file,
        limits=Limits(
            connections=arguments.connections,
            ring_bytes=arguments.ring_bytes,
            series=arguments.series if slow or _has_metrics(os.environ) else 0,
        ),
        queue=QueueLimits.from_environment(os.environ),
    )
    stop = _Stop()
    stop.on_signals()

    def on_ready(running: Running) -> None:
        attachments = running.attachments
        spans_to, metrics_to = running.destination, running.metrics_destination
        print(f"otelbpf: measuring {_measured(config)}; "
              + (f"spans and metrics go to {spans_to}" if spans_to == metrics_to
                 else f"spans go to {spans_to}, metrics to {metrics_to}"), file=sys.stderr)
        print(f"otelbpf: attached: {', '.join(attachments.description)}", file=sys.stderr)
        for fallback in attachments.fallbacks:
            print(f"otelbpf: passed over for {fallback}", file=sys.stderr)
        for absent in attachments.absent:
            print(f"otelbpf: absent from every request: {absent}", file=sys.stderr)
        sys.stderr.flush()
        if config.duration_s is not None:
            timer = threading.Timer(config.duration_s, stop.set)
            timer.daemon = True
            timer.start()

    sums = run(config, os.environ, stop, on_ready)
    for name, meaning in _NOT_JOINED.items():
        if sums.joins.get(name):
            print(f"otelbpf: {sums.joins[name]} {meaning}", file=sys.stderr)
    print(f"otelbpf: {sums}", file=sys.stderr)
    for hook, count in sums.missed.items():
        if not count:
            continue
        print(f"otelbpf: {hook} missed {count} calls: another program was running on that "
              "processor; their stamps are absent", file=sys.stderr)
    if config.sums_file is not None:
        _write_whole(config.sums_file, sums.as_json() + "\n")
    return 0


def _has_metrics(environment: Mapping[str, str]) -> bool:
    return environment.get("OTEL_METRICS_EXPORTER", "").strip() != "none"


def _write_whole(path: Path, text: str) -> None:
    """Writes a file that is either not there or complete."""
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(text, encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise UsageError(f"cannot write {path}: {error.strerror}") from error


def _check(arguments: argparse.Namespace) -> int:
    from otelbpf import check

    report = check.examine(tuple(arguments.interface), arguments.netns)
    print(report.as_json() if arguments.json else report)
    return 0 if report.can_run else 1


def _report(arguments: argparse.Namespace) -> int:
    from otelbpf.report import page

    spans, sums = list(dict.fromkeys(arguments.spans)), arguments.sums
    for path in filter(None, (*spans, sums)):
        # Without both there is nothing to write over; what cannot be read is told by who reads it.
        with contextlib.suppress(OSError, ValueError):
            if arguments.page.samefile(path):
                raise UsageError(f"{path} is read to make the page: name another file to write")
    _write_whole(arguments.page, page.make(spans, sums))
    return 0


_COMMANDS = {"run": _run, "check": _check, "report": _report}


def main() -> int:
    """The `otelbpf` command; returns its exit status."""
    logging.basicConfig(level=logging.WARNING, format="otelbpf: %(message)s", stream=sys.stderr)
    # The exporter's own word for each try; ours says it once, and what becomes of the spans.
    logging.getLogger("opentelemetry.exporter").setLevel(logging.ERROR)
    try:
        arguments = _build_parser().parse_args()
        return _COMMANDS[arguments.command](arguments)
    except OtelbpfError as error:
        print(f"otelbpf: {error}", file=sys.stderr)
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 1


if __name__ == "__main__":
    sys.exit(main())

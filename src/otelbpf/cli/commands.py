# SPDX-License-Identifier: Apache-2.0
"""The command line: the only module that prints."""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from otelbpf.cli import together, want
from otelbpf.cli.options import build_parser
from otelbpf.cli.rereading import Rereading
from otelbpf.errors import OtelbpfError, UsageError
from otelbpf.protocols.urls import authority_of

if TYPE_CHECKING:
    from otelbpf.agent.config import Config
    from otelbpf.agent.run import Running
    from otelbpf.kernel.findings import Report
    from otelbpf.kernel.limits import Limits
    from otelbpf.ledger.tally import Sums

_EXIT_REFUSED = 2
_LONGEST_LINE = 4_000
_OBJECTS_BETWEEN_COLLECTIONS = 100_000


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


def _measured(config: Config) -> str:
    """Whose requests are measured, for people."""
    hosts = [authority_of(host, port) for host, port in config.upstreams]
    hosts += [f"*:{port}" for port in config.client_ports]
    parts = [f"port {', '.join(map(str, config.ports))}"] if config.ports else []
    parts += [f"upstream {', '.join(hosts)}"] if hosts else []
    return " and ".join(parts)


def _require_measurable(arguments: argparse.Namespace) -> None:
    """Raises an OtelbpfError if there is nothing to measure, or no way to."""
    from otelbpf.host import ulimits

    ulimits.require()
    together.require(arguments)
    from otelbpf.export import variables
    from otelbpf.kernel import needs
    from otelbpf.kernel.loaders import Loader

    variables.settle(os.environ)
    limits, forwarded = _limits(arguments), bool(arguments.forwarded_by)
    for limited in needs.require(Loader(arguments.loader), limits, keeps_forwarded=forwarded):
        print(f"otelbpf: limited: {limited}", file=sys.stderr)


def _limits(arguments: argparse.Namespace) -> Limits:
    """As the options say, where series are asked for."""
    from otelbpf.kernel.limits import Limits

    return Limits(arguments.connections, arguments.ring, arguments.series)


def _config(arguments: argparse.Namespace, series: int) -> Config:
    """Of the options that all commands have which run an agent."""
    from otelbpf.agent.config import Config
    from otelbpf.host.interfaces import Xdp
    from otelbpf.kernel.hooks import Mechanism
    from otelbpf.kernel.loaders import Loader
    from otelbpf.policy.proxies import Forwarding, Header

    header = Header(arguments.forwarded_header or Header.X_FORWARDED_FOR)
    return Config(
        interfaces=tuple(dict.fromkeys(arguments.interface)),
        ports=tuple(dict.fromkeys(arguments.port)),
        upstreams=tuple(dict.fromkeys(arguments.upstream)),
        client_ports=tuple(dict.fromkeys(arguments.client_port)),
        proxies=tuple(dict.fromkeys(arguments.proxy_protocol)),
        forwarding=Forwarding(tuple(dict.fromkeys(arguments.forwarded_by)), header),
        netns=arguments.netns,
        duration_s=arguments.duration,
        loader=Loader(arguments.loader),
        hooks=None if arguments.hooks == "auto" else Mechanism(arguments.hooks),
        handlers=tuple(dict.fromkeys(arguments.handler)),
        xdp=Xdp(arguments.xdp),
        idle_timeout_s=arguments.idle_timeout,
        service_name=arguments.service_name,
        routes=tuple(dict.fromkeys(arguments.route)),
        found_routes=0 if arguments.no_path or arguments.routes == "given" else arguments.series,
        limits=replace(_limits(arguments), series=series),
    )


def _tell_attached(running: Running) -> None:
    attachments = running.attachments
    everything = [*attachments.description, *running.on_handlers]
    print(f"otelbpf: attached: {', '.join(everything)}", file=sys.stderr)
    for fallback in attachments.fallbacks:
        print(f"otelbpf: passed over for {fallback}", file=sys.stderr)
    for absent in attachments.absent:
        print(f"otelbpf: absent from requests: {absent}", file=sys.stderr)
    for unmeasured in attachments.unmeasured:
        print(f"otelbpf: absent from metrics: {unmeasured}", file=sys.stderr)
    sys.stderr.flush()


def _tell_sums(sums: Sums) -> None:
    for name, coverage in sums.interfaces.items():
        for gap, seconds in coverage.unmeasured_s.items():
            print(f"otelbpf: {name} was not measured for {seconds:.1f} s: {gap}", file=sys.stderr)
    unseen = sums.connections.get("unseen", 0)
    if unseen:
        what = "connection" if unseen == 1 else "connections"
        print(
            f"otelbpf: {unseen} {what} had bytes that were not seen on a measured interface as "
            "theirs; why is said above",
            file=sys.stderr,
        )
    uncertain = sums.segments.get("uncertain", 0)
    if uncertain:
        what = "segment" if uncertain == 1 else "segments"
        print(
            f"otelbpf: {uncertain} {what} may have begun requests of which nothing was told: on "
            "connections that are older than otelbpf, or behind what was lost, it was not certain",
            file=sys.stderr,
        )
    print(f"otelbpf: {sums}", file=sys.stderr)
    for hook, count in sums.missed.items():
        if not count:
            continue
        print(
            f"otelbpf: {hook} missed {count} {'call' if count == 1 else 'calls'}: another program "
            "was running on that processor; what it would have stamped is absent",
            file=sys.stderr,
        )


def _config_of_run(arguments: argparse.Namespace) -> Config:
    from otelbpf.export.exporters import Signal, exporter_name
    from otelbpf.export.sender import QueueLimits
    from otelbpf.policy.capture import Capture, Clients
    from otelbpf.policy.sampler import Sampler, Slow
    from otelbpf.traces.description import StageStyle

    slow = Slow.of_times(arguments.slow)
    has_metrics = exporter_name(os.environ, Signal.METRICS) != "none"
    return replace(
        _config(arguments, series=arguments.series if slow or has_metrics else 0),
        stages=StageStyle(arguments.stages),
        capture=Capture(
            path=not arguments.no_path,
            query=arguments.capture_query,
            user_agent=not arguments.no_user_agent,
            clients=Clients(arguments.client_address),
        ),
        sampler=Sampler.one_in(arguments.sample) if arguments.sample else None,
        slow=slow,
        keep_4xx=arguments.keep_4xx,
        ignored_routes=tuple(dict.fromkeys(arguments.ignore_route)),
        output=arguments.output,
        ready_file=arguments.ready_file,
        health=arguments.health,
        sums_file=arguments.sums_file,
        queue=QueueLimits.from_environment(os.environ),
    )


def _rereading(
    arguments: argparse.Namespace, config: Config
) -> Callable[[Callable[[Config], None]], None]:
    """Has SIGHUP read the file again; the result, called now and then, sees to it."""
    from otelbpf.agent.config import CHANGEABLE

    def tell(sentence: str) -> None:
        print(f"otelbpf: {_in_one_line(sentence)}", file=sys.stderr, flush=True)

    # Its table is made at the start.
    fixed = {} if config.limits.series else {"--slow": "there is no --slow and are no metrics yet"}
    rereading = Rereading(
        arguments, lambda: build_parser().parse_args(), build_parser().keys_of("run"), fixed, tell
    )
    rereading.on_signal()

    def look(become: Callable[[Config], None]) -> None:
        def become_as(now: argparse.Namespace) -> None:
            new = _config_of_run(now)
            become(replace(config, **{field: getattr(new, field) for field in CHANGEABLE}))

        rereading.look(become_as)

    return look


def _run(arguments: argparse.Namespace) -> int:
    # What is made until it is ready stays: there is no garbage to look for.
    gc.disable()
    _require_measurable(arguments)
    # Imported late: these take half a second, and bad options should not wait for them.
    from otelbpf.agent.run import run
    from otelbpf.kernel.loaders import BCC_LACKS, Loader
    from otelbpf.ledger.tally import not_joined

    config = _config_of_run(arguments)
    stop = _Stop()
    stop.on_signals()
    reread = _rereading(arguments, config)

    def on_ready(running: Running) -> None:
        # What was made so far stays. What requests are made of has no cycles: to look for some as
        # often as Python does by default would take a quarter of all the work on them.
        gc.freeze()
        gc.set_threshold(_OBJECTS_BETWEEN_COLLECTIONS)
        gc.enable()
        spans_to, metrics_to = running.destination, running.metrics_destination
        print(
            f"otelbpf: measuring {_measured(config)}; "
            + (
                f"spans and metrics go to {spans_to}"
                if spans_to == metrics_to
                else f"spans go to {spans_to}, metrics to {metrics_to}"
            ),
            file=sys.stderr,
        )
        _tell_attached(running)
        print(
            f"otelbpf: keeps {', '.join(map(str, running.rights)) or 'no rights'}",
            file=sys.stderr,
            flush=True,
        )
        if config.duration_s is not None:
            timer = threading.Timer(config.duration_s, stop.set)
            timer.daemon = True
            timer.start()

    def on_loading(loader: Loader) -> None:
        where = ", ".join(config.interfaces)
        print(
            f"otelbpf: loading, to measure {_measured(config)} on {where}"
            + (
                f"; BCC compiles the programs first, in some seconds; {BCC_LACKS}"
                if loader is Loader.BCC
                else ""
            ),
            file=sys.stderr,
            flush=True,
        )

    sums = run(config, os.environ, stop, on_ready, on_loading, reread)
    for sentence in not_joined(sums.joins):
        print(f"otelbpf: {sentence}", file=sys.stderr)
    _tell_sums(sums)
    if config.sums_file is not None:
        _write_whole(config.sums_file, sums.as_json() + "\n")
    return 0


def _top(arguments: argparse.Namespace) -> int:
    _require_measurable(arguments)
    from rich.console import Console

    from otelbpf.top.rows import Sort
    from otelbpf.top.watch import top

    config = _config(arguments, series=arguments.series)
    title = f"{_measured(config)} on {', '.join(config.interfaces)}"
    console = Console(highlight=False)
    is_live = sys.stdout.isatty() and not console.is_dumb_terminal
    if not is_live:
        # Whatever FORCE_COLOR says.
        console = Console(highlight=False, force_terminal=False, color_system=None)
    print(f"otelbpf: attaching, to measure {title}", file=sys.stderr, flush=True)
    sums = top(
        config, os.environ, console, _tell_attached,
        title=title, interval_s=arguments.interval, sort=Sort(arguments.sort), is_live=is_live,
    )  # fmt: skip
    _tell_sums(sums)
    return 0


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
    from otelbpf.kernel import findings

    report = findings.of_limits()
    if report is None:
        if arguments.config is not None:
            together.require(arguments)
        report = _examine(arguments)
    print(report.as_json() if arguments.json else report)
    return 0 if report.can_run else 1


def _examine(arguments: argparse.Namespace) -> Report:
    from otelbpf.kernel import check
    from otelbpf.kernel.loaders import Loader
    from otelbpf.kernel.needs import Need, needs

    def require_variables() -> None:
        # It takes half a second, and memory that may be what is missing.
        from otelbpf.agent import run

        run.require_variables(os.environ)

    variables = Need(
        "variables", "no OTEL_* variable that `otelbpf run` would refuse", require_variables
    )
    machine = needs(
        Loader(arguments.loader),
        _limits(arguments),
        keeps_forwarded=bool(arguments.forwarded_by),
    )
    return check.examine(tuple(arguments.interface), arguments.netns, machine, (variables,))


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


def _give_up_what_is_not_written() -> None:
    """Python would try once more at its end, and complain."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_one_line(text: str) -> str:
    """What an error quotes may hold anything, and be of any length."""
    if len(text) > _LONGEST_LINE:
        text = f"{text[: _LONGEST_LINE // 2]} ... {text[-_LONGEST_LINE // 2 :]}"
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)


class _Unfailing(io.TextIOBase):
    """What cannot be written to it is left out: what is measured goes on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def fileno(self) -> int:
        return self._stream.fileno()


_COMMANDS = {"run": _run, "top": _top, "check": _check, "report": _report}


def main() -> int:
    """The `otelbpf` command; returns its exit status."""
    if sys.stderr is None:
        # Nobody shall hear of it; and what is opened next shall not be taken for it.
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if not isinstance(sys.stderr, _Unfailing):
        sys.stderr = _Unfailing(sys.stderr)
    # Nothing here multiplies matrices; numpy would start threads for it, which keep all rights.
    os.environ["OPENBLAS_NUM_THREADS"] = "1"
    logging.basicConfig(level=logging.WARNING, format="otelbpf: %(message)s", stream=sys.stderr)
    # gRPC's own words for each try; ours says it once, and what becomes of the spans.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # What it will do without is not for us.
    logging.getLogger("pyroute2.netlink").setLevel(logging.ERROR)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Not each terminal can show each letter.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        arguments = build_parser().parse_args()
        status = _COMMANDS[arguments.command](arguments)
        if sys.stdout is not None:
            sys.stdout.flush()
        return status
    except OtelbpfError as error:
        print(f"otelbpf: {_in_one_line(str(error))}", file=sys.stderr)
        _give_up_what_is_not_written()
        return _EXIT_REFUSED
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        _give_up_what_is_not_written()
        return 1
    except want.ERRORS as error:
        if not want.is_why(error):
            raise
        print(f"otelbpf: {want.sentence(error)}", file=sys.stderr)
        _give_up_what_is_not_written()
        return _EXIT_REFUSED

# SPDX-License-Identifier: Apache-2.0
"""Run the demo: ``python -m demo``, as root.

topology -> receiver -> services -> agent -> load -> spans -> sums -> report
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from demo import ledgers, otlp
from demo.check import Sums, calls_owed, problems
from demo.findings import Export, Findings, as_json
from demo.load import Summary, requests_option
from demo.look import counted
from demo.names import files
from demo.plan import KEY, MAX_REQUESTS, SMALL_KEY, SMALL_LIMIT
from demo.processes import Process, ProcessError, running, signals_as_exit
from demo.receiver import Receiver
from demo.report import render
from demo.topology import GATEWAY_PORT, MODEL_PORTS, Side, Topology, TopologyError, topology
from demo.traces import traces
from otelbpf.top.look import visible

EXAMPLES = Path(__file__).resolve().parent.parent
GATEWAY = EXAMPLES / "gateway"

READY_S = 30.0
AGENT_READY_S = 60.0  # compiling and loading the BPF programs
LOAD_S = 60.0
LOAD_S_PER_REQUEST = 0.02
SPANS_S = 15.0


class DemoError(Exception):
    """The demo cannot go on; the message is one sentence for the user."""


@dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    requests: int
    json: Path | None
    agent: Path


def main() -> int:
    """Run the demo.

    Returns:
        0 if every request is accounted for, 1 if not, 2 for bad options.
    """
    console = Console()
    options = _options()
    try:
        if os.geteuid() != 0:
            raise DemoError(
                "this makes network namespaces and loads BPF programs, so it needs root"
            )
        if not options.agent.exists():
            raise DemoError(f"there is no otelbpf at {options.agent}; scripts/setup installs it")
        with signals_as_exit():
            findings = run(options, console)
        render(console, findings)
        if options.json is not None:
            options.json.write_text(json.dumps(as_json(findings), indent=2) + "\n")
    except (DemoError, ProcessError, TopologyError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    if not findings.problems:
        return 0
    if not console.is_terminal:
        # The report says it too, but that went elsewhere.
        print("demo:", visible("; ".join(findings.problems)), file=sys.stderr)
    return 1


def run(options: Options, console: Console) -> Findings:
    """The whole way, from an empty machine to what was found; nothing is left behind."""
    with ExitStack() as stack:
        step = stack.enter_context(_steps(console))
        directory = stack.enter_context(files())

        step("making two network namespaces")
        network = stack.enter_context(topology())

        step("starting the gateway and its two models")
        # With those that send to it, in a network that nobody else is in.
        receiver = stack.enter_context(network.server.call(Receiver))
        names: dict[int, str] = {}
        for service in _services(network.server, receiver):
            process = stack.enter_context(
                running(service.name, service.command, directory, service.environment)
            )
            process.wait_until(Process.printed_line, READY_S)
            names[process.popen.pid] = service.name

        step("starting otelbpf")
        ready, sums_file = directory / "ready", directory / "sums.json"
        agent = stack.enter_context(
            running(
                "otelbpf",
                _agent(options.agent, network.server, ready, sums_file),
                directory,
                _to(receiver),
                signal.SIGINT,
            )
        )
        agent.wait_until(lambda _agent: ready.exists(), AGENT_READY_S)

        step(f"sending {counted(options.requests, 'request')}")
        load = _load(network, options.requests, stack, directory)

        step("waiting for the spans")
        # Whether they came in time or not, the report says what did come.
        receiver.wait_for(
            _spans_owed(load), SPANS_S, lambda span: span.kind is not otlp.Kind.INTERNAL
        )

        step("stopping otelbpf")
        code = agent.stop(signal.SIGINT)
        if code != 0:
            raise DemoError(f"otelbpf ended with exit code {code}{agent.said()}")
        return _findings(load, receiver, _sums(sums_file, agent), names)


@dataclass(frozen=True)
class _Service:
    name: str
    command: list[str]
    environment: dict[str, str] = field(default_factory=dict)


def _services(server: Side, receiver: Receiver) -> list[_Service]:
    """The gateway, traced by OpenTelemetry's command, and the models, which know of no tracing.

    The models listen on the namespace's loopback.
    """

    def command(script: str, *arguments: str) -> list[str]:
        return [sys.executable, str(GATEWAY / script), *arguments]

    instrument = Path(sys.executable).with_name("opentelemetry-instrument")
    gateway = command(
        "gateway.py",
        *("--host", server.ipv4, "--host", server.ipv6, "--port", str(GATEWAY_PORT)),
        *("--key", f"{KEY}=1000000/1", "--key", f"{SMALL_KEY}={SMALL_LIMIT}/1000000"),
    )
    tracing = {
        **_to(receiver),
        "OTEL_SERVICE_NAME": "gateway",
        "OTEL_PROPAGATORS": "tracecontext,baggage,otelbpf",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # Each span is looked for, so none may be dropped in a hurry.
        "OTEL_BSP_MAX_QUEUE_SIZE": str(2 * MAX_REQUESTS),
    }
    json_port, stream_port = map(str, MODEL_PORTS)
    return [
        _Service(name, [*server.enter(), *command], environment)
        for name, command, environment in (
            ("upstream_json", command("upstream_json.py", "--port", json_port), {}),
            ("upstream_stream", command("upstream_stream.py", "--port", stream_port), {}),
            ("gateway", [str(instrument), *gateway], tracing),
        )
    ]


def _agent(agent: Path, server: Side, ready: Path, sums: Path) -> list[str]:
    """One agent for the gateway's port, what it asks of the models, and what they are asked."""
    measured = ["--interface", server.interface, "--interface", "lo", "--port", str(GATEWAY_PORT)]
    # By itself a veth would be left alone: here it stands for a network card.
    measured += ["--xdp", "on"]
    for port in MODEL_PORTS:
        measured += ["--port", str(port), "--upstream", f"127.0.0.1:{port}"]
    files = ["--ready-file", str(ready), "--sums-file", str(sums)]
    return [*server.enter(), str(agent), "run", *measured, *files]


def _to(receiver: Receiver) -> dict[str, str]:
    """What has spans sent there, and soon."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
        "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
        "OTEL_BSP_SCHEDULE_DELAY": "200",
    }


def _load(network: Topology, count: int, stack: ExitStack, directory: Path) -> Summary:
    timeout_s = LOAD_S + count * LOAD_S_PER_REQUEST
    command = [
        *(*network.client.enter(), sys.executable, "-m", "demo.load"),
        *(
            "--ipv4",
            f"http://{network.server.ipv4}:{GATEWAY_PORT}",
            "--ipv6",
            f"http://[{network.server.ipv6}]:{GATEWAY_PORT}",
        ),
        *("--requests", str(count), "--timeout", str(timeout_s)),
    ]
    load = stack.enter_context(running("load", command, directory, {"PYTHONPATH": str(EXAMPLES)}))
    try:
        return Summary.from_json(load.finish(timeout_s + 5))
    except ValueError as error:
        raise DemoError(f"the load's summary cannot be read: {error}") from error


def _sums(path: Path, agent: Process) -> Sums:
    try:
        return Sums.from_json(path.read_text())
    except FileNotFoundError as error:
        raise DemoError(f"otelbpf left no sums behind{agent.said()}") from error
    except ValueError as error:
        raise DemoError(f"otelbpf's sums cannot be read: {error}") from error


def _spans_owed(load: Summary) -> int:
    """But for stages: each request has the kernel's and the application's, a call one more."""
    return 2 * load.completed + 3 * calls_owed(load).total()


def _findings(load: Summary, receiver: Receiver, sums: Sums, names: dict[int, str]) -> Findings:
    spans = receiver.spans()
    decoded = ledgers.decode(spans)
    found = traces(spans, decoded.requests, names)
    services = {str(span.resource.get("service.name", "none")) for span in spans}
    export = Export(
        endpoint=receiver.grpc_endpoint,
        protocol="grpc",
        exports=len(receiver.exports()),
        spans=len(spans),
        application=sum(span.scope != ledgers.SCOPE for span in spans),
        service=", ".join(sorted(services)),
    )
    missing = problems(load, decoded, found, sums)
    return Findings(decoded, found, sums, export, load, tuple(missing))


@contextmanager
def _steps(console: Console) -> Iterator[Callable[[str], None]]:
    """Say what is going on: as one changing line on a terminal, else as lines on standard error."""
    if not console.is_terminal:
        yield lambda text: print(f"demo: {text}", file=sys.stderr, flush=True)
        return
    with console.status("") as status:
        yield lambda text: status.update(f"[dim]{text}[/dim]")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """One sentence, without the usage that argparse would put before it."""
        print(f"demo: {message}; see --help", file=sys.stderr)
        sys.exit(2)


def _options() -> Options:
    # The agent that was installed beside this Python is the one to show.
    beside = Path(sys.executable).with_name("otelbpf")
    parser = _Parser(
        prog="demo",
        description="Watch a gateway under load with otelbpf, in a network of its own.",
    )
    parser.add_argument(
        "--requests",
        type=requests_option,
        default=230,
        metavar="N",
        help="how many to send (%(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write what was found to this file"
    )
    parser.add_argument(
        "--agent", type=Path, metavar="PATH", default=beside, help="the otelbpf command to run"
    )
    args = parser.parse_args()
    if args.json is not None and not args.json.absolute().parent.is_dir():
        parser.error(f"argument --json: there is no directory {args.json.absolute().parent}")
    return Options(args.requests, args.json, args.agent)


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""Run the demo: ``python -m demo``, as root.

topology -> services -> receiver -> agent -> load -> spans -> sums -> report
"""

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from demo import ledgers, otlp
from demo.check import Sums, problems
from demo.findings import Export, Findings, as_json
from demo.load import Summary, requests_option
from demo.look import UNICODE, counted, printable
from demo.names import files
from demo.plan import KEY, SMALL_KEY, SMALL_LIMIT
from demo.processes import Process, ProcessError, running, signals_as_exit
from demo.receiver import Receiver
from demo.report import render
from demo.topology import Side, Topology, TopologyError, topology

EXAMPLES = Path(__file__).resolve().parent.parent
GATEWAY = EXAMPLES / "gateway"
PORT = 8080

READY_S = 15.0
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
        print("demo:", printable("; ".join(findings.problems), UNICODE), file=sys.stderr)
    return 1


def run(options: Options, console: Console) -> Findings:
    """The whole way, from an empty machine to what was found; nothing is left behind."""
    with ExitStack() as stack:
        step = stack.enter_context(_steps(console))
        directory = stack.enter_context(files())

        step("making two network namespaces")
        network = stack.enter_context(topology())

        step("starting the gateway and its two models")
        for name, command in _services(network.server):
            service = stack.enter_context(running(name, command, directory))
            service.wait_until(Process.printed_line, READY_S)

        step("starting otelbpf")
        receiver = stack.enter_context(Receiver())
        ready, sums_file = directory / "ready", directory / "sums.json"
        agent = stack.enter_context(
            running(
                "otelbpf",
                _agent(options.agent, network.server, ready, sums_file),
                directory,
                {
                    "OTEL_EXPORTER_OTLP_ENDPOINT": receiver.grpc_endpoint,
                    "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc",
                },
                signal.SIGINT,
            )
        )
        agent.wait_until(lambda _agent: ready.exists(), AGENT_READY_S)

        step(f"sending {counted(options.requests, 'request')}")
        load = _load(network, options.requests, stack, directory)

        step("waiting for the spans")
        # Whether they came in time or not, the report says what did come.
        receiver.wait_for(load.completed, SPANS_S, lambda span: span.kind is otlp.Kind.SERVER)

        step("stopping otelbpf")
        code = agent.stop(signal.SIGINT)
        if code != 0:
            raise DemoError(f"otelbpf ended with exit code {code}{agent.said()}")
        return _findings(load, receiver, _sums(sums_file, agent))


def _services(server: Side) -> list[tuple[str, list[str]]]:
    """The three services' names and commands; the models listen on the namespace's loopback."""

    def command(script: str, *arguments: str) -> list[str]:
        return [*server.enter(), sys.executable, str(GATEWAY / script), *arguments]

    return [
        ("upstream_json", command("upstream_json.py", "--port", "9001")),
        ("upstream_stream", command("upstream_stream.py", "--port", "9002")),
        (
            "gateway",
            command(
                "gateway.py",
                *("--host", server.ipv4, "--host", server.ipv6, "--port", str(PORT)),
                *("--key", f"{KEY}=1000000/1", "--key", f"{SMALL_KEY}={SMALL_LIMIT}/1000000"),
            ),
        ),
    ]


def _agent(agent: Path, server: Side, ready: Path, sums: Path) -> list[str]:
    return [
        *(str(agent), "run", "--netns", server.netns, "--interface", server.interface),
        *("--port", str(PORT), "--ready-file", str(ready), "--sums-file", str(sums)),
    ]


def _load(network: Topology, count: int, stack: ExitStack, directory: Path) -> Summary:
    timeout_s = LOAD_S + count * LOAD_S_PER_REQUEST
    command = [
        *(*network.client.enter(), sys.executable, "-m", "demo.load"),
        *(
            "--ipv4",
            f"http://{network.server.ipv4}:{PORT}",
            "--ipv6",
            f"http://[{network.server.ipv6}]:{PORT}",
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


def _findings(load: Summary, receiver: Receiver, sums: Sums) -> Findings:
    spans = [span for span in receiver.spans() if span.scope == ledgers.SCOPE]
    decoded = ledgers.decode(spans)
    services = {str(span.resource.get("service.name", "none")) for span in spans}
    export = Export(
        endpoint=receiver.grpc_endpoint,
        protocol="grpc",
        exports=len(receiver.exports()),
        spans=len(spans),
        service=", ".join(sorted(services)),
    )
    return Findings(decoded.requests, sums, export, load, tuple(problems(load, decoded, sums)))


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

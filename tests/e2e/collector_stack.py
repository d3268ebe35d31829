# SPDX-License-Identifier: Apache-2.0
"""The Collector and Jaeger as a user builds and starts them, inside the server's namespace.

There they have the ports of their configurations for themselves, and 127.0.0.1 is the namespace's.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlencode

from collectors import spans_of_json_lines
from demo.otlp import Span
from demo.processes import Process, running
from support.namespaces import Side
from support.waiting import DEADLINE_S, wait_until

COLLECTOR = Path(__file__).resolve().parents[2] / "collector"
LOOPBACK = "127.0.0.1"
OTLP_GRPC_PORT = 4317
OTLP_HTTP_PORT = 4318
PROMETHEUS_PORT = 8889
#: What a build may take where nothing is cached.
_BUILD_S = 3600.0

_numbers = itertools.count()


def go_environment() -> dict[str, str]:
    """Where the machine's Go is too old, scripts/setup has installed one beside Python."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    return {**os.environ, "PATH": path}


@functools.cache
def built(script: str) -> Path:
    """Builds with collector/SCRIPT, where that is not done yet.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    done = subprocess.run(
        ["nice", "-n", "5", COLLECTOR / script],
        capture_output=True,
        text=True,
        timeout=_BUILD_S,
        env=go_environment(),
    )
    if done.returncode:
        raise RuntimeError(f"collector/{script} failed ({done.returncode}):\n{done.stderr[-4000:]}")
    return Path(done.stdout.strip())


def get(side: Side, port: int, path: str) -> tuple[int, bytes]:
    """Asks a server on the namespace's 127.0.0.1.

    Raises:
        OSError: it does not answer.
    """
    connection = http.client.HTTPConnection(LOOPBACK, port, timeout=DEADLINE_S)
    connection.sock = side.connect(LOOPBACK, port)
    with contextlib.closing(connection):
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except http.client.HTTPException as error:
            raise OSError(f"port {port} gave no HTTP answer: {error!r}") from error


def answers(side: Side, port: int, path: str = "/") -> bool:
    """Does it answer, and well?"""
    try:
        return get(side, port, path)[0] == 200
    except OSError:
        return False


@dataclass(frozen=True)
class Collector:
    """A running Collector."""

    process: Process
    side: Side
    metrics_port: int

    def metrics(self) -> dict[str, list[tuple[str, float]]]:
        """What its Prometheus endpoint says: name -> [(labels, value)]."""
        return samples(get(self.side, self.metrics_port, "/metrics")[1].decode())

    def kill(self) -> None:
        """SIGKILL, and waits for its end."""
        self.process.popen.kill()
        assert self.process.popen.wait(DEADLINE_S) == -signal.SIGKILL


def samples(text: str) -> dict[str, list[tuple[str, float]]]:
    """Prometheus's text format: name -> [(labels, value)]."""
    found: dict[str, list[tuple[str, float]]] = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            series, _, value = line.rpartition(" ")
            name, _, labels = series.partition("{")
            found.setdefault(name, []).append((labels.rstrip("}"), float(value)))
    return found


@contextlib.contextmanager
def collector(
    side: Side,
    directory: Path,
    *configurations: str,
    environment: Mapping[str, str] | None = None,
    settings: Sequence[str] = (),
    health_port: int = 13133,
    metrics_port: int = PROMETHEUS_PORT,
) -> Iterator[Collector]:
    """Runs the Collector with collector/CONFIGURATION.yaml, and waits until it is healthy.

    Args:
        settings: NAME=VALUE, over the configurations'; what tests cannot wait for.
    """
    command: list[str | Path] = [*side.enter(), built("build")]
    for name in configurations:
        command += ["--config", COLLECTOR / f"{name}.yaml"]
    command += [f"--set={setting}" for setting in settings]
    name = f"collector-{next(_numbers)}"
    with running(name, command, directory, environment) as process:
        process.wait_until(lambda _: answers(side, health_port), DEADLINE_S)
        yield Collector(process, side, metrics_port)


class Jaeger:
    """A running Jaeger, and what it is asked."""

    QUERY_PORT = 16686
    METRICS_PORT = 8888

    def __init__(self, process: Process, side: Side) -> None:
        self.process = process
        self._side = side
        self._known: dict[str, tuple[float, list[Span]]] = {}

    def spans(self, service: str) -> list[Span]:
        """All spans of the traces in which a service takes part, as its API v3 tells them.

        A span that was delivered twice is there twice: its storage in memory keeps both.
        To ask for them all is dear, so that is done only when more have been stored.
        """
        text = get(self._side, self.METRICS_PORT, "/metrics")[1].decode()
        stored = sum(value for _, value in samples(text).get("otelcol_exporter_sent_spans", []))
        if self._known.get(service, (-1.0,))[0] != stored:
            self._known[service] = (stored, self._ask(service))
        return self._known[service][1]

    def _ask(self, service: str) -> list[Span]:
        now = datetime.now(UTC)
        query = urlencode(
            {
                "query.service_name": service,
                "query.start_time_min": (now - timedelta(hours=1)).isoformat(),
                "query.start_time_max": (now + timedelta(minutes=1)).isoformat(),
                "query.num_traces": 100_000,
            }
        )
        status, body = get(self._side, self.QUERY_PORT, f"/api/v3/traces?{query}")
        if status == 404:
            return []
        assert status == 200, (status, body[:500])
        return spans_of_json_lines(json.dumps(json.loads(body)["result"]))

    def wait_for(
        self,
        service: str,
        enough: Callable[[list[Span]], bool],
        what: str,
        deadline_s: float = DEADLINE_S,
    ) -> list[Span]:
        """Asks until the service's spans are enough, and returns them, each once."""
        found: list[Span] = []

        def there() -> bool:
            found[:] = once(self.spans(service))
            return enough(found)

        wait_until(there, what, state=lambda: f"; {len(found)} spans came", deadline_s=deadline_s)
        return found


def once(spans: list[Span]) -> list[Span]:
    """Each span once: what is repeated after a failure may have arrived before it."""
    kept = {(span.trace_id, span.span_id): span for span in spans}
    for span in spans:
        assert kept[span.trace_id, span.span_id] == span, "two spans with one id"
    return list(kept.values())


@contextlib.contextmanager
def jaeger(side: Side, directory: Path) -> Iterator[Jaeger]:
    """Runs Jaeger with its storage in memory."""
    command: list[str | Path] = [
        *side.enter(),
        built("build-jaeger"),
        "--config",
        COLLECTOR / "jaeger.yaml",
    ]
    # It would trace its own answers, see jaeger.yaml.
    environment = {"OTEL_TRACES_SAMPLER": "always_off"}
    with running(f"jaeger-{next(_numbers)}", command, directory, environment) as process:
        process.wait_until(
            lambda _: answers(side, Jaeger.QUERY_PORT, "/api/v3/services"), DEADLINE_S
        )
        yield Jaeger(process, side)

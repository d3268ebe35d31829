# SPDX-License-Identifier: Apache-2.0
"""A Prometheus of its own for a test: what it scraped, and what it answers."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from collectors import HOST
from demo.processes import Process, running
from support.ports import unused_port
from support.waiting import DEADLINE_S, wait_until

OPENMETRICS = "application/openmetrics-text;version=1.0.0"
PLAIN_TEXT = "text/plain;version=0.0.4"

# honor_labels: the job and the instance are those of the measured services, not of this scrape.
_CONFIG = """
global:
  scrape_interval: {interval_ms}ms
scrape_configs:
"""
_JOB = """
  - job_name: {name}
    honor_labels: true
    static_configs:
      - targets: ["{host}:{port}"]
"""


def scrape(port: int, accept: str = OPENMETRICS) -> str:
    """What an endpoint of this machine answers to a scraper that asks for this format."""
    request = urllib.request.Request(f"http://{HOST}:{port}/metrics", headers={"Accept": accept})
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as response:
        text: str = response.read().decode()
        return text


def lint(text: str) -> str:
    """What promtool has to say to a scrape in the text format; nothing, if all is well."""
    checked = subprocess.run(
        ["promtool", "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    return f"{checked.stdout}{checked.stderr}" or f"{checked.returncode or ''}"


@dataclass(frozen=True)
class Sample:
    """A series and its value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A running one."""

    process: Process
    port: int

    def ask(self, path: str, **parameters: str) -> Any:
        """Its HTTP API; an error's text is in the exception."""
        url = f"http://{HOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=DEADLINE_S) as response:
                return json.load(response)["data"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path} {parameters}: {error.read().decode()}") from error

    def query(self, expression: str) -> list[Sample]:
        """What a PromQL expression is now, with which labels."""
        answer = self.ask("query", query=expression)
        assert answer["resultType"] == "vector", expression
        return [Sample(each["metric"], float(each["value"][1])) for each in answer["result"]]

    def value(self, expression: str) -> float:
        """The value of an expression that has one; 0 where it has none yet."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return found[0].value if found else 0.0

    def wait_for(self, expression: str, value: float) -> None:
        """Waits until an expression has this value."""
        wait_until(
            lambda: self.value(expression) == value,
            f"{expression} is {value}",
            state=lambda: f"{self.query(expression)} {self.ask('targets')}",
        )

    def is_ready(self) -> bool:
        """Does it answer queries?"""
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"http://{HOST}:{self.port}/-/ready", timeout=DEADLINE_S)
            return True
        return False


@contextlib.contextmanager
def prometheus(
    directory: Path, targets: Mapping[str, int], interval_ms: int = 200
) -> Iterator[Prometheus]:
    """Starts one that keeps exemplars; it takes up to 5 s until it scrapes for the first time.

    Args:
        targets: ports of this machine, by the name of the job.
        interval_ms: from one scrape to the next; a scrape that takes longer fails.
    """
    config = directory / "prometheus.yaml"
    jobs = (_JOB.format(name=name, host=HOST, port=port) for name, port in targets.items())
    config.write_text(_CONFIG.format(interval_ms=interval_ms) + "".join(jobs))
    port = unused_port()
    command = [
        "prometheus",
        f"--config.file={config}",
        f"--storage.tsdb.path={directory / 'tsdb'}",
        f"--web.listen-address={HOST}:{port}",
        "--enable-feature=exemplar-storage",
    ]
    with running("prometheus", command, directory) as process:
        made = Prometheus(process, port)
        process.wait_until(lambda _: made.is_ready(), DEADLINE_S)
        yield made

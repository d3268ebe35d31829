# SPDX-License-Identifier: Apache-2.0
"""Spans in files: a disk that is full for a while, and agents that are killed while they write."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from client import Client
from collectors import spans_of_json_lines
from servers import Server
from stack import COUNT, Agent, agent, measured, otelbpf
from support.namespaces import Network
from support.waiting import wait_until

#: A line for each request: some 11 KB of JSON.
ENVIRONMENT = {
    "OTEL_TRACES_EXPORTER": "otlp_json_file",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "1",
}
FULL = "does not take spans now (No space left on device)"
BLOCK = 4096


class Disk:
    """A small disk; all of what is left of it can be taken away, and given back."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._ballast = path / "ballast"

    def fill(self) -> None:
        """Up to the last block."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while file.write(bytes(BLOCK)):
                pass

    def free(self) -> None:
        """Takes the ballast away."""
        self._ballast.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    (path := tmp_path / "disk").mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "otelbpf-test", path], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", path], check=True)


def options(net: Network, server: Server) -> tuple[str | int, ...]:
    return ("--interface", net.server.interface, "--port", server.port, "--netns", net.server.netns)


def ask(net: Network, port: int, count: int = COUNT) -> None:
    with Client.of(net, port) as client:
        for number in range(count):
            client.ask(f"/{number}")


def wait_for(running: Agent, words: str) -> None:
    wait_until(lambda: words in running.stderr, f"it says {words!r}", state=lambda: running.stderr)


def paths_in(file: Path) -> list[str]:
    """The requests in a file of whole lines, in their order."""
    text = file.read_text()
    assert text == "" or text.endswith("\n")
    return [request["url.path"] for request in measured(spans_of_json_lines(text))]


def paths_so_far(file: Path) -> list[str]:
    """The same of a file that is written to: who reads it may see the half of a line."""
    text, end, _ = file.read_text().rpartition("\n")
    return [request["url.path"] for request in measured(spans_of_json_lines(text + end))]


def all_of(count: int) -> list[str]:
    return [f"/{number}" for number in range(count)]


@pytest.mark.parametrize("how", ["--output", ">>"])
def test_a_disk_that_is_full_for_a_while(
    net: Network, server: Server, tmp_path: Path, disk: Disk, how: str
) -> None:
    """Nothing is lost, nothing is there twice, and it is told once."""
    file = disk.path / "spans.jsonl"
    given = ("--output", file) if how == "--output" else ()
    under = () if given else ("sh", "-c", f'exec "$@" >> {file}', "sh")
    with agent(
        tmp_path, *options(net, server), *given, environment=ENVIRONMENT, under=under
    ) as running:
        running.wait_ready()
        disk.fill()
        ask(net, server.port)
        wait_for(running, FULL)
        assert (so_far := paths_so_far(file)) == all_of(len(so_far))
        disk.free()
        wait_until(
            lambda: len(paths_so_far(file)) == COUNT, "all are there", state=lambda: running.stderr
        )
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert paths_in(file) == all_of(COUNT)
    name = str(file) if given else "standard output"
    said = [
        line
        for line in ended.stderr.splitlines()
        if "spans" in line.split(";")[0] and "go to" not in line
    ]
    assert [line.split(";")[0] for line in said] == [
        f"otelbpf: {name} {FULL}",
        f"otelbpf: {name} takes spans again",
    ]
    assert "Traceback" not in ended.stderr


def test_a_disk_that_stays_full(net: Network, server: Server, tmp_path: Path, disk: Disk) -> None:
    """What is not in the file is counted as lost; what is there is whole."""
    file = disk.path / "spans.jsonl"
    environment = {**ENVIRONMENT, "OTEL_BSP_EXPORT_TIMEOUT": "500"}
    with agent(
        tmp_path, *options(net, server), "--output", file, environment=environment
    ) as running:
        running.wait_ready()
        ask(net, server.port)
        wait_until(lambda: len(paths_so_far(file)) == COUNT, "all are there")
        disk.fill()
        ask(net, server.port, 10 * COUNT)
        wait_for(running, FULL)
        ended = running.stop()
    ended.assert_adds_up()
    written = len(paths_in(file))
    assert COUNT <= written < 11 * COUNT
    assert (ended.sums["seen"], ended.sums["exported"]) == (11 * COUNT, written)
    assert ended.sums["lost"] == {"export_failed": 11 * COUNT - written}
    assert ended.stderr.count(FULL) == 1
    assert "Traceback" not in ended.stderr


def test_the_console_on_a_full_disk(
    net: Network, server: Server, tmp_path: Path, disk: Disk
) -> None:
    """Whole JSON objects, one after the other."""
    file = disk.path / "spans.json"
    with agent(
        tmp_path,
        *options(net, server),
        environment={"OTEL_TRACES_EXPORTER": "console"},
        under=("sh", "-c", f'exec "$@" > {file}', "sh"),
    ) as running:
        running.wait_ready()
        disk.fill()
        ask(net, server.port)
        wait_for(running, FULL)
        disk.free()
        wait_for(running, "standard output takes spans again")
        running.stop().assert_clean(seen=COUNT)
    decoder, text, paths = json.JSONDecoder(), file.read_text(), []
    while text.strip():
        span, end = decoder.raw_decode(text.lstrip())
        text = text.lstrip()[end:]
        if span["kind"] == "SpanKind.SERVER":
            paths.append(span["attributes"]["url.path"])
    assert paths == all_of(COUNT)


def test_an_agent_that_is_killed_while_it_writes(
    net: Network, server: Server, tmp_path: Path
) -> None:
    """At most its last line is torn. The next agent goes on with whole lines, and so do readers."""
    file = tmp_path / "spans.jsonl"
    environment = {"OTEL_TRACES_EXPORTER": "otlp_json_file"}
    asked = itertools.count()
    with agent(
        tmp_path, *options(net, server), "--output", file, environment=environment
    ) as running:
        running.wait_ready()
        with Client.of(net, server.port) as client:
            while file.stat().st_size < 1 << 20:
                client.ask(f"/{next(asked)}")
        running.send(signal.SIGKILL)
        running.wait()
    lines = file.read_text().splitlines(keepends=True)
    whole = "".join(line for line in lines if line.endswith("\n"))
    assert whole.count("\n") >= len(lines) - 1
    before = measured(spans_of_json_lines(whole))
    # As a kill in the middle of a line would have left it, wherever this one came.
    with file.open("a") as torn:
        torn.write(whole.splitlines()[0][:1000] if whole == "".join(lines) else "")
    page = tmp_path / "page.html"
    read = otelbpf(tmp_path, "report", page, "--spans", file)
    assert read.code == 0, read.stderr
    assert read.stderr == (
        f"otelbpf: 1 line of {file} is not whole, as a writer leaves that is killed or has no "
        "room: left out\n"
    )
    with agent(
        tmp_path, *options(net, server), "--output", file, environment=environment
    ) as running:
        running.wait_ready()
        ask(net, server.port)
        ended = running.stop()
    ended.assert_clean(seen=COUNT)
    assert f"{file} ended in the middle of a line" in ended.stderr
    after = measured(spans_of_json_lines(file.read_text()))
    assert len(after) == len(before) + COUNT
    read = otelbpf(tmp_path, "report", page, "--spans", file)
    assert (read.code, read.stderr) == (0, "")

# SPDX-License-Identifier: Apache-2.0
"""Commands, options and variables: what the documents name exists, and what exists is named."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbpf.cli.options import build_parser
from otelbpf.export import variables
from otelbpf.export.sender import QueueLimits
from otelbpf.ledger.batch import SPANS_MOST
from otelbpf.ledger.tally import Lost
from otelbpf.report.sums import REASONS

ROOT = Path(__file__).resolve().parents[2]
#: What users read. The change log also names what is gone.
DOCUMENTS = [
    ROOT / name
    for name in (
        "README.md", "CONTRIBUTING.md", "bench/README.md", "collector/README.md",
        "examples/gateway/README.md", "plugin/README.md", "plugin/thread-context/README.md",
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    )
]  # fmt: skip
TEXT = "\n".join(path.read_text() for path in DOCUMENTS)
(_CHOICES,) = (action.choices for action in build_parser()._actions if action.dest == "command")
#: Command -> its options.
OPTIONS = {name: set(parser._option_string_actions) for name, parser in _CHOICES.items()}
#: Options that stand alone in a text and are others': scripts/test, Python, the gateway.
OF_OTHERS = {"--vm", "--with-dtrace", "--host", "--key", "--timeout"}
_BLOCK = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_CALLED = re.compile(r"(?:^|[\s/])otelbpf (.*)")
_PIECE = re.compile(r"`([^`]+)`")
_OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
_OWN = re.compile(r"\bOTELBPF_[A-Z_]+\b")


def lines() -> Iterator[list[str]]:
    """The arguments of each otelbpf that a document has its reader call."""
    for language, block in _BLOCK.findall(TEXT):
        if language in ("console", "sh"):
            for line in block.replace("\\\n", " ").splitlines():
                if called := _CALLED.search(line):
                    yield shlex.split(called[1], comments=True)


def pieces() -> Iterator[str]:
    """All code within the documents' texts."""
    for piece in _PIECE.findall(_BLOCK.sub("", TEXT)):
        yield " ".join(piece.split())


@pytest.mark.parametrize("arguments", list(lines()), ids=" ".join)
def test_what_is_to_be_typed_is_taken(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file that the documents show."""
    document = (ROOT / "docs/configuration.md").read_text()
    (example,) = (block for language, block in _BLOCK.findall(document) if language == "yaml")
    (tmp_path / "otelbpf.yaml").write_text(example)
    monkeypatch.chdir(tmp_path)
    build_parser().parse_args(arguments)


def test_what_the_cluster_runs_is_taken() -> None:
    text = (ROOT / "deploy/daemonset.yaml").read_text() + (ROOT / "deploy/Dockerfile").read_text()
    found = re.findall(r'(?:args:|CMD) (\["\w.*\])', text)
    assert len(found) == 2
    for arguments in found:
        build_parser().parse_args(json.loads(arguments))


def test_commands_and_their_options_exist() -> None:
    found = [piece.split()[1:] for piece in pieces() if piece.startswith("otelbpf ")]
    assert len(found) > 20
    for command, *words in found:
        assert command in OPTIONS, command
        assert set(_OPTION.findall(" ".join(words))) <= OPTIONS[command], (command, words)


def test_options_that_stand_alone_exist() -> None:
    named = {o for piece in pieces() if piece.startswith("--") for o in _OPTION.findall(piece)}
    assert named - OF_OTHERS <= set().union(*OPTIONS.values())
    assert named >= OF_OTHERS


def test_every_option_is_named() -> None:
    own = {option for options in OPTIONS.values() for option in options if option[:2] == "--"}
    assert own <= set(_OPTION.findall(TEXT))


def test_every_command_is_named() -> None:
    assert all(f"`otelbpf {command}" in TEXT for command in OPTIONS)


def own_variables(place: str) -> set[str]:
    """Those of otelbpf's own that code and configurations there have a use for."""
    files = [path for path in (ROOT / place).rglob("*") if path.suffix in (".py", ".yaml")]
    return {name for path in files for name in _OWN.findall(path.read_text())}


def test_variables_of_its_own() -> None:
    """The collector's configurations say themselves what theirs are; the plugin's are named."""
    named, read = set(_OWN.findall(TEXT)), own_variables("plugin/src")
    assert read <= named <= read | own_variables("collector")


def test_every_variable_that_is_read_is_named() -> None:
    named = set(re.findall(r"\bOTEL_[A-Z_]+\b", TEXT))
    assert variables._KNOWN - named == set()


def test_the_queues_variables() -> None:
    """Each with the default that it has, which is none of an SDK's."""
    limits = QueueLimits()
    table = (ROOT / "docs/sending.md").read_text()
    rows = dict(re.findall(r"^\| `(OTEL_BSP_\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    assert rows == {
        "OTEL_BSP_MAX_QUEUE_SIZE": f"{limits.requests}",
        "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": f"not set: {limits.batch:,} requests",
        "OTEL_BSP_SCHEDULE_DELAY": f"{limits.delay_s * 1000:.0f}",
        "OTEL_BSP_EXPORT_TIMEOUT": f"{limits.flush_s * 1000:.0f}",
    }
    assert f"a request is {SPANS_MOST} spans at the most, so 512 are {512 // SPANS_MOST}" in table


def test_each_reason_for_a_loss_is_told_of() -> None:
    """One table of all: what it means, and what to do."""
    text = (ROOT / "docs/reliability.md").read_text()
    _, _, section = text.partition("## Reasons for losses\n")
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", section.partition("\n## ")[0], re.M)
    assert sorted(reason for reason, *_ in rows) == sorted(Lost)
    assert set(REASONS) == set(Lost)

# SPDX-License-Identifier: Apache-2.0
"""What SIGHUP has read again: which options hold at once, and what is said of the others."""

from __future__ import annotations

import argparse
import os
import signal
from pathlib import Path

import pytest

from otelbpf.agent.config import CHANGEABLE, Config
from otelbpf.cli.commands import _config_of_run
from otelbpf.cli.options import build_parser
from otelbpf.cli.rereading import AT_ONCE, Rereading

LEAST = "interface: lo\nport: 80\n"
#: A value of each option that is not its default, and does not ask for others.
OTHER = {
    "--sample": "sample: 1/2",
    "--slow": "slow: 5ms",
    "--keep-4xx": "keep-4xx: true\nslow: 1000s",
    "--route": "route: /x/{y}",
    "--routes": "routes: given",
    "--ignore-route": "ignore-route: /healthz",
    "--no-path": "no-path: true",
    "--capture-query": "capture-query: true",
    "--no-user-agent": "no-user-agent: true",
    "--client-address": "client-address: none",
    "--idle-timeout": "idle-timeout: 7",
}


class Agent:
    """The command line's side of one: what was said, and what was to hold."""

    def __init__(self, *options: str, fixed: dict[str, str] | None = None) -> None:
        self.line = ["run", "--config", "otelbpf.yaml", *options]
        self.said: list[str] = []
        self.held: list[argparse.Namespace] = []
        self.arguments = self.read()
        self.rereading = Rereading(
            self.arguments, self.read, build_parser().keys_of("run"), fixed or {}, self.said.append
        )

    def read(self) -> argparse.Namespace:
        return build_parser().parse_args(self.line)

    def reread(self, text: str) -> str:
        write(text)
        self.rereading._ask(signal.SIGHUP, None)
        self.rereading.look(self.held.append)
        # It was asked once.
        self.rereading.look(self.held.append)
        return self.said.pop()


def write(text: str) -> None:
    Path("otelbpf.yaml").write_text(LEAST + text)


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    write("")
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def test_nobody_has_asked() -> None:
    agent = Agent()
    write("sample: 1/2")
    agent.rereading.look(agent.held.append)
    assert (agent.held, agent.said) == ([], [])


@pytest.mark.parametrize("option", AT_ONCE)
def test_each_of_them_changes_what_the_agent_can_change(option: str) -> None:
    """And nothing else of its configuration; taken back it is as before."""
    agent = Agent()
    before = _config_of_run(agent.arguments)
    assert "holds now" in agent.reread(OTHER[option])
    after = _config_of_run(agent.held[-1])
    different = {name for name in Config.__dataclass_fields__ if differs(before, after, name)}
    assert different and different <= {*CHANGEABLE}
    assert "holds now" in agent.reread("")
    assert _config_of_run(agent.held[-1]) == before


def differs(one: Config, other: Config, name: str) -> bool:
    # The table that --slow needs without metrics is made at the start; here there are metrics.
    return bool(getattr(one, name) != getattr(other, name))


def test_every_field_that_may_change_is_changed_by_one_of_them() -> None:
    changed = set()
    for option in AT_ONCE:
        agent = Agent()
        before = _config_of_run(agent.arguments)
        agent.reread(OTHER[option])
        after = _config_of_run(agent.held[-1])
        changed |= {name for name in Config.__dataclass_fields__ if differs(before, after, name)}
    assert changed == {*CHANGEABLE}


def test_all_others_are_for_the_start() -> None:
    agent = Agent()
    for text, key in (
        ("upstream: '[::1]:80'", "upstream"),
        ("hooks: fentry", "hooks"),
        ("series: 100", "series"),
        ("service-name: shop", "service-name"),
        ("output: spans.json", "output"),
        ("health: 99", "health"),
    ):
        assert agent.reread(text) == (
            f"otelbpf.yaml was read again: {key} cannot change while otelbpf runs: that takes "
            "another start"
        )
    assert agent.held == []


def test_both_in_one_sentence() -> None:
    agent = Agent(fixed={"--slow": "why not"})
    assert agent.reread("sample: 1/2\nno-path: true\nslow: 5ms\nhooks: fentry") == (
        "otelbpf.yaml was read again: what it says of no-path, sample holds now; hooks, slow "
        "cannot change while otelbpf runs (why not): that takes another start"
    )
    (held,) = agent.held
    assert (held.sample, held.no_path, held.slow, held.hooks) == (2, True, (), "auto")


def test_what_is_another_commands_is_nobodys_business() -> None:
    agent = Agent()
    assert agent.reread("sort: p99\njson: true") == (
        "otelbpf.yaml was read again: nothing has changed"
    )


def test_the_command_line_holds_still() -> None:
    agent = Agent("--sample", "1/3")
    assert agent.reread("sample: 1/2") == "otelbpf.yaml was read again: nothing has changed"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("prot: 1", "otelbpf.yaml:3: there is no key 'prot'"),
        ("\nroute: users", "otelbpf.yaml:4: route: 'users' is no route"),
        ("keep-4xx: true", "--keep-4xx says what --sample and --slow keep"),
        ("- x", "otelbpf.yaml:3: this is no YAML"),
    ],
)
def test_what_is_wrong_changes_nothing(text: str, said: str) -> None:
    agent = Agent()
    answer = agent.reread(text)
    assert answer.startswith(said)
    assert answer.endswith("; what was in force stays so")
    assert agent.held == []
    assert agent.reread("") == "otelbpf.yaml was read again: nothing has changed"


def test_a_file_that_is_gone() -> None:
    agent = Agent()
    Path("otelbpf.yaml").unlink()
    agent.rereading._ask(signal.SIGHUP, None)
    agent.rereading.look(agent.held.append)
    assert agent.said == [
        "cannot read the configuration 'otelbpf.yaml': No such file or directory; what was in "
        "force stays so"
    ]


@pytest.mark.parametrize("is_given", [True, False])
def test_only_where_there_is_a_file_the_signal_means_that(
    monkeypatch: pytest.MonkeyPatch, is_given: bool
) -> None:
    handled: list[int] = []
    monkeypatch.setattr(signal, "signal", lambda number, _: handled.append(number))
    agent = Agent()
    if not is_given:
        agent.arguments.config = None
    agent.rereading.on_signal()
    assert handled == [signal.SIGHUP] * is_given

# SPDX-License-Identifier: Apache-2.0
"""What a configuration file may hold, and in which words it is refused: with the line, status 2."""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from otelbpf.agent import run as running
from otelbpf.agent.config import Config
from otelbpf.cli import commands as cli
from otelbpf.cli.configuration import SIZE_MOST
from otelbpf.cli.options import build_parser
from otelbpf.cli.parser import Command, Repeated
from otelbpf.errors import UsageError
from otelbpf.host.interfaces import Xdp
from otelbpf.kernel import check, needs
from otelbpf.kernel.findings import Report
from otelbpf.ledger.tally import Sums
from otelbpf.policy.sampler import Sampler, Slow

ROOT = Path(__file__).resolve().parents[2]
#: The commands that take one.
COMMANDS = ("run", "top", "check")
LEAST = "interface: lo\nport: 80\n"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that would have been run: nothing is attached, no right is needed."""
    configs: list[Config] = []

    def run(config: Config, *_: object) -> Sums:
        configs.append(config)
        return Sums(0, 0, 0, {})

    monkeypatch.setattr(needs, "require", lambda *_, **__: [])
    monkeypatch.setattr(running, "run", run)
    monkeypatch.setattr(cli.signal, "signal", lambda *_: None)
    return configs


@pytest.fixture
def examined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """The interfaces that `check` has looked at, which it has not."""
    interfaces: list[tuple[str, ...]] = []

    def examine(names: tuple[str, ...], *_: object) -> Report:
        interfaces.append(names)
        return Report("6.18", (), (), ())

    monkeypatch.setattr(check, "examine", examine)
    return interfaces


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The file is named as a user would; no variable says anything."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


def write(text: str) -> None:
    Path("otelbpf.yaml").write_text(text, encoding="utf-8")


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["otelbpf", *arguments, "--config", "otelbpf.yaml"])
    return cli.main()


def parsed(text: str, *arguments: str, command: str = "run") -> argparse.Namespace:
    """What the command line takes of a file with this text and of these arguments."""
    write(text)
    return build_parser().parse_args([command, "--config", "otelbpf.yaml", *arguments])


def commands() -> dict[str, Command]:
    (choices,) = (each.choices for each in build_parser()._actions if each.dest == "command")
    return {name: choices[name] for name in COMMANDS}


REFUSED = {
    # Keys.
    "prot: 80": "1: there is no key 'prot': did you mean 'port'?",
    f"{LEAST}\n# why\nidle_timeout: 5": "5: there is no key 'idle_timeout': did you mean "
    "'idle-timeout'?",
    "--port: 80": "1: there is no key '--port': did you mean 'port'?",
    "Interfaces: [lo]": "1: there is no key 'Interfaces': did you mean 'interface'?",
    "colour: blue": "1: there is no key 'colour': keys are the options of `otelbpf run`, `top` and "
    "`check`, without their dashes",
    "help: true": "1: there is no key 'help': did you mean 'health'?",
    "config: b.yaml": "1: there is no key 'config': keys are the options of `otelbpf run`, `top` "
    "and `check`, without their dashes",
    "<<: {port: 80}": "1: '<<' has keys of its own in it: a key has one value, or a list of "
    "values; write what has brackets, braces, or a colon and a blank in quotes",
    "[port]: 80": "1: a key is one word, no list and no mapping",
    "port: 80\ninterface: lo\nport: 81": "3: the key 'port' is in line 1 already: give it once, "
    "with a list if it has several values",
    "netns: a\n\n'netns': a": "3: the key 'netns' is in line 1 already: give it once, with a list "
    "if it has several values",
    # Types.
    "run:\n  port: 80": "2: 'run' has keys of its own in it: a key has one value, or a list of "
    "values; write what has brackets, braces, or a colon and a blank in quotes",
    "upstream:\n- [::1]:80": "2: a list has a list in it: a key has one value, or a list of "
    "values; write what has brackets, braces, or a colon and a blank in quotes",
    "upstream: [::1]:80": "1: this is no YAML: while parsing a flow node, expected the node "
    "content, but found ':'; a value with brackets, braces or other marks may need quotes",
    "port: [80, [81]]": "1: a list has a list in it: a key has one value, or a list of values; "
    "write what has brackets, braces, or a colon and a blank in quotes",
    "port: [{a: 80}]": "1: a list has keys of its own in it: a key has one value, or a list of "
    "values; write what has brackets, braces, or a colon and a blank in quotes",
    "route: [/users/{id}]": "1: this is no YAML: while parsing a flow sequence, expected ',' or "
    "']', but got '{'; a value with brackets, braces or other marks may need quotes",
    "netns: [a, b]": "1: netns: it takes one value, and this is a list",
    "duration:\n- 5": "1: duration: it takes one value, and this is a list",
    "capture-query: [true]": "1: capture-query: it takes one value, and this is a list",
    "capture-query: 1": "1: capture-query: '1' is not true or false",
    "capture-query: 'true'": "1: capture-query: 'true' is not true or false",
    "capture-query:": "1: capture-query: there is no value: give one, or leave the key out",
    "port:\ninterface: lo": "1: port: there is no value: give one, or leave the key out",
    "port:\n- 80\n- ~": "3: port: there is no value: give one, or leave the key out",
    "service-name: null": "1: service-name: there is no value: give one, or leave the key out",
    # Values: the options' own words.
    "port: 0": "1: port: '0' is no TCP port: it is a number from 1 to 65535",
    "port:\n  - 80\n  - http": "3: port: 'http' is no TCP port: it is a number from 1 to 65535",
    "port: true": "1: port: 'true' is no TCP port: it is a number from 1 to 65535",
    "port: 8_0": "1: port: '8_0' is no TCP port: it is a number from 1 to 65535",
    "\nupstream: '::1:80'": "2: upstream: '::1:80' is no HOST:PORT: an IPv6 address is written in "
    "brackets, as in [::1]:80",
    "sample: 0.1": "1: sample: '0.1' is no share: one in a hundred is 1/100",
    "slow: 5": "1: slow: '5' is no time, or no route and time: write 5ms, 1.5s, or /checkout=200ms",
    "duration: .inf": "1: duration: '.inf' is no number of seconds above 0",
    "ring: 3": "1: ring: '3' is no number from 16 to 65536",
    "netns: a\nsort: size": "2: sort: invalid choice: 'size' (choose from ",
    "sums-file: /missing/sums": "1: sums-file: '/missing/sums' cannot be written: its directory "
    "does not exist, or it is no ordinary file",
    'output: "a\\0b"': "1: output: 'a\\x00b' has a character that no option can have",
    'route: "/\\ud800"': "1: route: '/\\ud800' has a character that no option can have",
    # What YAML has and a configuration has not.
    "port: &p 80": "1: an anchor (&p) has no meaning in a configuration: write the value itself, "
    "in quotes if it begins with &",
    "a: &a [x, x]\nb: &b [*a, *a]": "1: an anchor (&a) has no meaning in a configuration: write "
    "the value itself, in quotes if it begins with &",
    "port: 80\nroute: */files": "2: this is no YAML: while scanning an alias, expected alphabetic "
    "or numeric character, but found '/'",
    "port: *p": "1: an alias (*p) has no meaning in a configuration: write the value itself, in "
    "quotes if it begins with *",
    "port: !!int 80": "1: a tag (tag:yaml.org,2002:int) has no meaning in a configuration: write "
    "the value itself, in quotes if it begins with !",
    "output: !!python/object/apply:os.system [id]": "1: a tag (tag:yaml.org,2002:python/object/"
    "apply:os.system) has no meaning in a configuration: write the value itself, in quotes if it "
    "begins with !",
    "- port: 80": "1: a configuration is keys and values, as in `port: 8080`, one a line",
    "\n8080": "2: a configuration is keys and values, as in `port: 8080`, one a line",
    "[" * SIZE_MOST: "1: a configuration is keys and values, as in `port: 8080`, one a line",
    "port: " + "[" * 60_000: "1: a list has a list in it: a key has one value, or a list of "
    "values; write what has brackets, braces, or a colon and a blank in quotes",
    "port: 80\n---\nport: 81": "2: this is no YAML: expected a single document in the stream, but "
    "found another document",
    # What is no YAML.
    "port: 80\n\tnetns: a": "2: this is no YAML: while scanning for the next token, found "
    "character '\\t' that cannot start any token",
    "port: 80\nnetns a\nduration: 5": "3: this is no YAML: while scanning a simple key, could not "
    "find expected ':'",
    "port: [80": "1: this is no YAML: while parsing a flow sequence, expected ',' or ']', but got "
    "'<stream end>'; a value with brackets, braces or other marks may need quotes",
    "duration: 5\nport: [80\n\n": "2: this is no YAML: while parsing a flow sequence, expected "
    "',' or ']', but got '<stream end>'; a value with brackets, braces or other marks may need "
    "quotes",
    "duration: 5\nnetns: 'a\n": "2: this is no YAML: while scanning a quoted scalar, found "
    "unexpected end of stream",
    "netns: @a": "1: this is no YAML: while scanning for the next token, found character '@' that "
    "cannot start any token",
    "netns: a\nport: \x01": "2: this is no YAML: U+0001 is not allowed in it",
    'netns: "\\U00110000"': "1: this is no YAML: chr() arg not in range(0x110000)",
    # Nothing.
    "": None,
    "# port: 80\n": None,
    "---\n": None,
    "{}": None,
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40])
def test_refused(
    text: str,
    command: str,
    ran: list[Config],
    examined: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By all commands in the same words, before anything is done."""
    said = REFUSED[text]
    if said is None:
        said = " has no key: a configuration is keys and values, as in `port: 8080`, one a line"
    else:
        said = f":{said}"
    write(text)
    assert call(monkeypatch, command) == 2
    out, err = capsys.readouterr()
    assert (out, ran, examined) == ("", [], [])
    # argparse goes on with the choices, which each Python quotes in its own way.
    assert err.startswith(f"otelbpf: otelbpf.yaml{said}")
    assert err.count("\n") == 1
    assert said.endswith("(choose from ") or err.endswith(f"{said}\n")


def unreadable(directory: Path) -> dict[str, str]:
    """Paths of files that nobody can use, and what is said of them."""
    (directory / "large").write_bytes(b"#" * (SIZE_MOST + 1))
    (directory / "latin").write_bytes(b"port: 80\n\n# gr\xfc\xdfe\n")
    return {
        "none.yaml": "cannot read the configuration 'none.yaml': No such file or directory",
        "": "cannot read the configuration '': No such file or directory",
        ".": "cannot read the configuration '.': Is a directory",
        "large/x": "cannot read the configuration 'large/x': Not a directory",
        "large": "large is larger than 64 KiB: it is no configuration of otelbpf's",
        "/dev/zero": "/dev/zero is larger than 64 KiB: it is no configuration of otelbpf's",
        "latin": "latin:3: this is not UTF-8: save it as that",
    }


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_that_cannot_be_read(command: str, tmp_path: Path) -> None:
    for path, said in unreadable(tmp_path).items():
        with pytest.raises(UsageError) as raised:
            build_parser().parse_args([command, f"--config={path}"])
        assert str(raised.value) == said


def test_the_largest_that_is_taken() -> None:
    text = LEAST + "#" * (SIZE_MOST - len(LEAST))
    assert parsed(text).port == (80,)


@settings(derandomize=True, max_examples=400, database=None, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [
                *"[]{},:-?|>&*!%@`'\"#~\\\n\t\r\x85\ufeff", "port", "sample", ": ", "- ", "\n  ",
                "\\U00110000", "\\UFFFFFFFF", "\\x00", "\\ud800", "!!int ", "!e!%FF ",
                "%TAG !e! x\n", f"%YAML {'9' * 5000}.1\n", "---", "...", "<<", "80", "1:30",
            ]
        ),
        max_size=14,
    )
)  # fmt: skip
def test_whatever_is_in_it_it_is_taken_or_refused(pieces: list[str]) -> None:
    """And nothing else comes of it."""
    write("port: 80\n" + "".join(pieces))
    try:
        arguments = build_parser().parse_args(["run", "--config", "otelbpf.yaml"])
    except UsageError as error:
        assert str(error).startswith("otelbpf.yaml:")
    else:
        assert all(1 <= port <= 65_535 for port in arguments.port)


# --- Keys --------------------------------------------------------------------------------------


def test_every_option_has_a_key() -> None:
    for command in commands().values():
        options = {
            option[2:]
            for each in commands().values()
            for option in each._option_string_actions
            if option.startswith("--")
        }
        assert set(command.keys()) == options - {"help", "config"}
        assert len(options) > 30


def test_an_option_means_the_same_to_all_commands() -> None:
    """So it does not matter by which one its value is read."""

    def of(action: argparse.Action) -> tuple[object, ...]:
        read = getattr(action.type, "__qualname__", None)
        return type(action), read, action.nargs, action.choices, action.default, action.dest

    keys = [
        {
            option: of(action)
            for option, action in command._option_string_actions.items()
            if option not in ("-h", "--help")
        }
        for command in commands().values()
    ]
    for one in keys:
        for other in keys:
            assert {k: v for k, v in one.items() if k in other} == {
                k: v for k, v in other.items() if k in one
            }


#: One of these is taken by each option that takes more than a choice.
SOME = ("100", "8080", "10.0.0.1", "here:80", "/a/{b}", "1/4", "5ms", "sums")


def accepted(command: str, option: str, action: argparse.Action) -> tuple[str, argparse.Namespace]:
    """A value that the option takes, and the arguments with it."""
    for text in (*(action.choices or ()), *SOME)[::-1]:
        try:
            return text, build_parser().parse_args([command, f"{option}={text}"])
        except UsageError:
            continue
    pytest.fail(f"{option} takes none of these")


@pytest.mark.parametrize(
    ("command", "key"),
    [(name, option[2:]) for name, command in commands().items()
     for option in command._option_string_actions if option[:2] == "--"
     if option not in ("--help", "--config")],
)  # fmt: skip
def test_each_key_does_what_its_option_does(command: str, key: str) -> None:
    action = commands()[command].keys()[key]
    if action.nargs == 0:
        text, by_option = "true", build_parser().parse_args([command, f"--{key}"])
        assert getattr(parsed(f"{key}: false", command=command), action.dest) is False
    else:
        text, by_option = accepted(command, f"--{key}", action)
    by_file = parsed(f"{key}: {text}", command=command)
    expected, found = getattr(by_option, action.dest), getattr(by_file, action.dest)
    assert found == (tuple(expected) if isinstance(action, Repeated) else expected)
    assert found != action.default
    # And all else is as it was.
    for name, value in vars(by_option).items():
        assert name in (action.dest, "config") or getattr(by_file, name) == value


@pytest.mark.parametrize(
    ("text", "dest", "value"),
    [
        ("xdp: off", "xdp", "off"),
        ("service-name: 0x10", "service_name", "0x10"),
        ("service-name: true", "service_name", "true"),
        ("service-name: 2026-01-02", "service_name", "2026-01-02"),
        ("service-name: 'null'", "service_name", "null"),
        ("health: 10:30", "health", ("10", 30)),
        ("upstream: ['[::1]:80', a:81]", "upstream", (("::1", 80), ("a", 81))),
        ("port: []", "port", ()),
        ("port: 80", "port", (80,)),
        ("port:\n- 80\n-  '81'\n", "port", (80, 81)),
        ("route: /users/{id}", "route", ("/users/{id}",)),
        ("slow: [5ms, /a=1s]", "slow", (("", 5_000_000), ("/a", 1_000_000_000))),
        ("sample: 1/10", "sample", 10),
        ("sample: 1/3", "sample", 3),
        ("capture-query: on", "capture_query", True),
        ("\ufeffcapture-query: no", "capture_query", False),
        ("%YAML 1.2\n---\nnetns: a # b\n...", "netns", "a"),
    ],
)
def test_a_value_is_what_is_written(text: str, dest: str, value: object) -> None:
    """Whatever else YAML makes of it."""
    assert getattr(parsed(text), dest) == value


# --- What holds --------------------------------------------------------------------------------


def test_what_is_given_on_the_command_line_holds() -> None:
    text = "interface: [eth0, eth1]\nport: [80, 81]\nxdp: off\nduration: 5\nroute: /a"
    arguments = parsed(text, "--port", "90", "--port=91", "--xdp", "on", "--sample=1/2")
    assert (arguments.interface, arguments.port) == (("eth0", "eth1"), [90, 91])
    assert (arguments.xdp, arguments.duration, arguments.sample) == ("on", 5.0, 2)
    # The default is a value, too.
    assert parsed(text, "--xdp=auto").xdp == "auto"


def test_what_does_not_hold_is_looked_at_all_the_same() -> None:
    with pytest.raises(UsageError, match=r"^otelbpf\.yaml:1: port: '0' is no TCP port"):
        parsed("port: 0", "--port", "80")


def test_there_is_one_file() -> None:
    """Else what the first one forbids might be told."""
    with pytest.raises(UsageError, match="--config is given 2 times: there is one file"):
        build_parser().parse_args(["run", "--config", "a.yaml", "--config=b.yaml"])


def test_help_needs_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as ended:
            parsed("nonsense", "--help", command=command)
        assert ended.value.code == 0
        assert "--config FILE" in capsys.readouterr().out


def test_a_report_has_none() -> None:
    with pytest.raises(UsageError, match="--config is an option of `otelbpf run` and `otelbpf top"):
        build_parser().parse_args(["report", "page.html", "--spans=a", "--config", "otelbpf.yaml"])


def test_who_gives_none_does_not_wait_for_yaml() -> None:
    program = (
        "import sys; from otelbpf.cli.options import build_parser; "
        "build_parser().parse_args(['run', '--interface=lo', '--port=80']); "
        "print('yaml' in sys.modules, 'otelbpf.cli.configuration' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False False\n", "")


TOGETHER = {
    "port: 80": "the following arguments are required: --interface; see `otelbpf run --help`",
    "interface: []\nport: 80": "the following arguments are required: --interface; see "
    "`otelbpf run --help`",
    "interface: lo": "nothing to measure: give a server's --port, or an --upstream or a "
    "--client-port that requests are sent to; see `otelbpf run --help`",
    f"{LEAST}keep-4xx: true": "--keep-4xx says what --sample and --slow keep: give one of these, "
    "too; see `otelbpf run --help`",
    f"{LEAST}forwarded-header: forwarded": "--forwarded-header has no meaning alone: name the "
    "proxies whose header is believed with --forwarded-by",
    "interface: lo\nclient-port: 80\nproxy-protocol: 10.0.0.1": "--proxy-protocol has no meaning "
    "without a --port: it is of the clients of a server",
    f"{LEAST}no-path: true\nroutes: found": "--routes found tells paths, and --no-path none: leave "
    "one of them out; see `otelbpf run --help`",
    f"{LEAST}no-path: true\ncapture-query: true": "--capture-query tells a path's query, and "
    "--no-path none: leave one out; see `otelbpf run --help`",
    LEAST + "proxy-protocol:\n" + "".join(f"- 10.0.0.{n}\n" for n in range(65)): "--proxy-protocol "
    "names 65 networks: there is room for 64; name larger ones",
}


@pytest.mark.parametrize("text", TOGETHER)
def test_run_and_check_agree(
    text: str,
    ran: list[Config],
    examined: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """On what is wrong with the whole; what is wrong with one line they read by the same code."""
    write(text)
    for command in ("run", "check"):
        assert call(monkeypatch, command) == 2
        assert capsys.readouterr() == ("", f"otelbpf: {TOGETHER[text]}\n")
    assert (ran, examined) == ([], [])


def test_check_without_a_file_needs_nothing(
    examined: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["otelbpf", "check"])
    assert cli.main() == 0
    assert examined == [()]


def example() -> str:
    (text,) = re.findall(
        r"^```yaml\n(.*?)^```$",
        (ROOT / "docs/configuration.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
    return text


def test_the_documents_example(
    ran: list[Config],
    examined: list[tuple[str, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write(example())
    assert call(monkeypatch, "check") == 0
    assert call(monkeypatch, "run", "--port", "8081") == 0
    assert examined == [("eth0", "lo")]
    (config,) = ran
    assert (config.interfaces, config.ports) == (("eth0", "lo"), (8081,))
    assert config.upstreams == (("models.internal", 8000), ("fd00::1", 8000))
    assert config.xdp is Xdp.OFF
    assert config.sampler == Sampler.one_in(10)
    assert config.slow == Slow(200_000_000, (("/checkout", 1_500_000_000),))
    assert config.routes == ("/users/{name}", "/static/*")
    assert config.health == ("127.0.0.1", 13_134)
    assert config.ready_file == Path("/run/otelbpf.ready")

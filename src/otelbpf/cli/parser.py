# SPDX-License-Identifier: Apache-2.0
"""How a command's options are read: from its line, and from the file of its --config."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from otelbpf.errors import UsageError

if TYPE_CHECKING:
    from otelbpf.cli.configuration import Entry, Value

_CONFIG = "--config"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence, without the usage text before it.

    Attributes:
        commands: by their names.
    """

    commands: Mapping[str, Command] = {}

    def keys_of(self, command: str) -> dict[str, str]:
        """What a command takes from a file: the names of the values, and their keys there."""
        own = self.commands[command]
        return {action.dest: key for key, action in own.keys().items() if own.has(f"--{key}")}

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see `{self.prog} --help`")


class Repeated(argparse.Action):
    """An option that may be repeated. Where it is given, what a file says of it does not hold."""

    def __init__(self, option_strings: Sequence[str], dest: str, **more: Any) -> None:
        super().__init__(option_strings, dest, default=(), **more)

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        # A file's are a tuple, like the default.
        given = getattr(namespace, self.dest)
        setattr(namespace, self.dest, [*(given if isinstance(given, list) else ()), values])


class Command(Parser):
    """Refuses itself what it does not know: argparse would leave that to `otelbpf`.

    Attributes:
        all: the commands.
    """

    all: Collection[Command] = ()

    # argparse's own also takes namespaces that are made by others; nobody gives it one here.
    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        # What is there already stands in for the defaults.
        namespace = self._of_file(args)
        arguments, unknown = super().parse_known_args(args, namespace)
        if unknown:
            option = unknown[0].partition("=")[0]
            others = [f"`{each.prog}`" for each in self.all if each.has(option)]
            whose = f"; {option} is an option of {' and '.join(others)}" if others else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{whose}")
        return arguments, unknown

    def has(self, option: str) -> bool:
        """Is this an option of the command's?"""
        return option in self._option_string_actions

    def keys(self) -> dict[str, argparse.Action]:
        """What a file may give: the options of all commands that take one.

        So one file suits them all; what is another command's is looked at, and left to it.
        """
        return {
            action.option_strings[-1].removeprefix("--"): action
            for command in (*self.all, self)
            if command.has(_CONFIG)
            for action in command._actions
            # --help has no default.
            if action.default != argparse.SUPPRESS and _CONFIG not in action.option_strings
        }

    def _of_file(self, args: Sequence[str] | None) -> argparse.Namespace:
        """Of all keys what the file says, or their defaults; nothing where no file is given."""
        namespace = argparse.Namespace()
        if not self.has(_CONFIG):
            return namespace
        first = Parser(prog=self.prog, add_help=False, allow_abbrev=False)
        first.add_argument(_CONFIG, action="append", default=[])
        first.add_argument("-h", "--help", action="store_true")
        found, _ = first.parse_known_args(args)
        if not found.config or found.help:
            return namespace
        if len(found.config) > 1:
            self.error(f"{_CONFIG} is given {len(found.config)} times: there is one file")
        from otelbpf.cli import configuration

        keys = self.keys()
        for action in keys.values():
            setattr(namespace, action.dest, action.default)
        for entry in configuration.read(found.config[0]):
            if entry.key not in keys:
                raise UsageError(
                    f"{entry.place}: there is no key {entry.key!r}: {_near(entry, keys)}"
                )
            action = keys[entry.key]
            setattr(namespace, action.dest, self._read(action, entry))
        return namespace

    def _read(self, action: argparse.Action, entry: Entry) -> object:
        """The option's value."""
        for value in entry.values:
            if value.is_null:
                raise UsageError(
                    f"{value.place}: {entry.key}: there is no value: give one, or leave the key out"
                )
        if isinstance(action, Repeated):
            return tuple(self._read_one(action, entry.key, value) for value in entry.values)
        if entry.is_list:
            raise UsageError(f"{entry.place}: {entry.key}: it takes one value, and this is a list")
        (value,) = entry.values
        if action.nargs != 0:
            return self._read_one(action, entry.key, value)
        if value.truth is None:
            raise UsageError(f"{value.place}: {entry.key}: {value.text!r} is not true or false")
        return value.truth

    def _read_one(self, action: argparse.Action, key: str, value: Value) -> object:
        """As argparse reads what is given on the command line."""
        try:
            read: object = self._get_value(action, value.text)
            self._check_value(action, read)
        except argparse.ArgumentError as error:
            raise UsageError(f"{value.place}: {key}: {error.message}") from error
        return read


def _near(entry: Entry, keys: Collection[str]) -> str:
    """What may have been meant."""
    plain = entry.key.lower().replace("_", "-").strip("-")
    for key in difflib.get_close_matches(plain, keys, n=1):
        return f"did you mean {key!r}?"
    return "keys are the options of `otelbpf run`, `top` and `check`, without their dashes"

# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: the configuration file is read again, while the agent runs."""

from __future__ import annotations

import argparse
import signal
from collections.abc import Callable

from otelbpf.cli import together, want
from otelbpf.errors import OtelbpfError

#: Options that hold as soon as they are read; all others are for the start.
AT_ONCE = (
    "--sample",
    "--slow",
    "--keep-4xx",
    "--route",
    "--routes",
    "--ignore-route",
    "--no-path",
    "--capture-query",
    "--no-user-agent",
    "--client-address",
    "--idle-timeout",
)


def _dest(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


class Rereading:
    """What the command line and its file say, each time that SIGHUP asks for it.

    Args:
        arguments: what they said at the start.
        read: reads both again.
        keys: the names in arguments of all that a file may give, and their keys.
        fixed: of AT_ONCE, what this run can do nothing about, and why.
        tell: gets each sentence.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        read: Callable[[], argparse.Namespace],
        keys: dict[str, str],
        fixed: dict[str, str],
        tell: Callable[[str], None],
    ) -> None:
        self._now = arguments
        self._read = read
        self._keys = keys
        self._fixed = {_dest(option): why for option, why in fixed.items()}
        self._tell = tell
        # No lock, which a signal handler could find taken.
        self._is_asked = False

    def on_signal(self) -> None:
        """From now on SIGHUP asks, where there is a file."""
        if self._now.config is not None:
            signal.signal(signal.SIGHUP, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self._is_asked = True

    def look(self, become: Callable[[argparse.Namespace], None]) -> None:
        """Reads again, if that was asked for, and says what came of it.

        Args:
            become: makes this hold from then on; is called if something has changed.
        """
        if not self._is_asked:
            return
        self._is_asked = False
        path = self._now.config
        try:
            said = self._read()
            together.require(said)
        except OtelbpfError as error:
            self._tell(f"{error}; what was in force stays so")
            return
        except want.ERRORS as error:
            if not want.is_why(error):
                raise
            self._tell(f"{want.sentence(error)}; what was in force stays so")
            return
        different = {dest for dest in self._keys if getattr(said, dest) != getattr(self._now, dest)}
        at_once = different & {*map(_dest, AT_ONCE)} - self._fixed.keys()
        if at_once:
            now = argparse.Namespace(**vars(self._now))
            for dest in at_once:
                setattr(now, dest, getattr(said, dest))
            become(now)
            self._now = now
        self._say(path, at_once, different - at_once)

    def _say(self, path: str, at_once: set[str], later: set[str]) -> None:
        parts = []
        if at_once:
            parts.append(f"what it says of {self._list(at_once)} holds now")
        if later:
            whys = dict.fromkeys(filter(None, map(self._fixed.get, sorted(later))))
            why = f" ({', '.join(whys)})" if whys else ""
            parts.append(
                f"{self._list(later)} cannot change while otelbpf runs{why}: that takes another "
                "start"
            )
        self._tell(f"{path} was read again: {'; '.join(parts) or 'nothing has changed'}")

    def _list(self, dests: set[str]) -> str:
        return ", ".join(sorted(self._keys[dest] for dest in dests))

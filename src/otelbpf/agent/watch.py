# SPDX-License-Identifier: Apache-2.0
"""Keeps the interfaces measured that were asked for, and says so when they are not.

It looks, several times a second, instead of listening: whatever listened in another network
namespace would keep that alive.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from otelbpf.errors import KernelError, OtelbpfError
from otelbpf.host.interfaces import require_ethernet
from otelbpf.host.netns import Netns, current_cookie
from otelbpf.kernel.attach import Attachments
from otelbpf.kernel.lines import Stranger
from otelbpf.kernel.on_interface import OnInterface
from otelbpf.ledger.tally import Coverage, Gap

_log = logging.getLogger(__name__)

_LOOK_S = 0.2
# What costs more to look at: who else is on the interfaces, and while all of ours are there, what
# they are called. Whoever keeps packets from the programs is noticed at once all the same.
_LINES_S, _QUIET_LINES_S = 1.0, 5.0
# How often it goes in front of others, or attaches again, on an interface: who answers each time
# has the last word.
_MOVES_MOST = 16


@dataclass(frozen=True)
class _Sight:
    """What there is in the namespace.

    Attributes:
        indices: of the interfaces that were asked for, by name; 0: there is none.
        names: of the interfaces that programs are on, by index; empty: there is none.
        strangers: who is before the programs, of the lines that were looked at; None: the programs
            are not there.
    """

    cookie: int
    indices: Mapping[str, int]
    names: Mapping[int, str]
    strangers: Mapping[tuple[OnInterface, str], list[Stranger] | None]


@dataclass
class _Asked:
    """An interface that was asked for.

    Attributes:
        on: what programs are on: one that was renamed may have a successor.
        since_s: of the gap.
        refusal: what was said last of attaching in vain.
        given_up: the index of one that programs are taken off time and again.
        left_alone: what was said last of stamps that are absent there.
        met: all strangers that were ever before the programs, by direction.
        told: those of them that stayed there, or came again, which is said once.
        moves: how often the programs went before them, or were attached again.
    """

    on: list[OnInterface] = field(default_factory=list)
    gap: Gap | None = None
    since_s: float = 0.0
    unmeasured_s: dict[Gap, float] = field(default_factory=dict)
    refusal: str = ""
    given_up: int = 0
    left_alone: str = ""
    met: set[tuple[str, int | str]] = field(default_factory=set)
    told: set[tuple[str, int | str]] = field(default_factory=set)
    moves: int = 0

    def may_move(self) -> bool:
        self.moves += 1
        return self.moves <= _MOVES_MOST


class Watcher:
    """Looks after the interfaces, from when all is attached.

    Args:
        names: of the interfaces that were asked for.
        cookie: of the namespace that is measured.
    """

    def __init__(
        self, attachments: Attachments, netns: Netns, cookie: int, names: Iterable[str]
    ) -> None:
        self._attachments = attachments
        self._netns = netns
        self._cookie = cookie
        self._asked = {name: _Asked() for name in names}
        for on in attachments.on_interfaces:
            asked = self._asked[on.name]
            asked.on.append(on)
            asked.left_alone = on.left_alone
        self._strangers: dict[tuple[OnInterface, str], list[Stranger]] = {}
        self._look_s = self._lines_s = 0.0
        self._former: set[int] = set()
        self._lost_namespace = ""  # what was said of that

    @property
    def is_whole(self) -> bool:
        """Is all measured that was asked for?"""
        return all(asked.gap is None for asked in self._asked.values())

    def coverage(self, now_s: float) -> dict[str, Coverage]:
        """Of each interface, by the name that was asked for; from any thread."""
        return {name: _coverage(asked, now_s) for name, asked in self._asked.items()}

    def measured(self) -> dict[int, OnInterface]:
        """What programs are on, by the interface's index."""
        return {on.ifindex: on for on in self._attachments.on_interfaces}

    def was_measured(self, ifindex: int) -> bool:
        """Were programs on an interface of this index, which is gone?"""
        return ifindex in self._former

    def strangers(self, on: OnInterface, direction: str) -> list[Stranger]:
        """Whom packets met before the programs when it looked last."""
        return self._strangers.get((on, direction), [])

    def blame_strangers(self, on: OnInterface, now_s: float) -> None:
        """They are known to keep packets from the programs."""
        self._set_gap(self._asked[on.name], Gap.BEHIND, now_s)

    def look(self, now_s: float, *, at_lines: bool = False, is_quiet: bool = False) -> None:
        """Looks, if it is time to, and does what there is to be done.

        Args:
            now_s: on the monotonic clock.
            at_lines: look at once, and at who else is on the interfaces, too.
            is_quiet: who else is there may wait longer.
        """
        if now_s < self._look_s and not at_lines:
            return
        self._look_s = now_s + _LOOK_S
        at_lines = at_lines or now_s >= self._lines_s
        if not at_lines and self.is_whole and self._is_all_alive():
            return
        if at_lines:
            self._lines_s = now_s + (_QUIET_LINES_S if is_quiet else _LINES_S)
        sight = None
        with contextlib.suppress(KernelError):
            sight = self._netns.run(lambda: self._see(at_lines))
        if sight is None or sight.cookie != self._cookie:
            self._handle_lost_namespace(now_s)
            return
        self._lost_namespace = ""
        for name, asked in self._asked.items():
            self._handle_interface(name, asked, sight, now_s)
            # What was refused is tried again, but not as often.
            if not asked.refusal or at_lines:
                self._attach_to_new(name, asked, sight.indices[name], now_s)
        for (on, direction), strangers in sight.strangers.items():
            if on in self._attachments.on_interfaces:
                self._handle_line(self._asked[on.name], on, direction, strangers, now_s)

    def _is_all_alive(self) -> bool:
        """What shows from anywhere, and so costs little: has nobody been taken away?"""
        return all(on.is_alive() for on in self._attachments.on_interfaces)

    def _see(self, at_lines: bool) -> _Sight:
        """In the namespace."""
        strangers = {}
        for on in self._attachments.on_interfaces if at_lines else ():
            for direction, line in on.lines.items():
                # Where the interface is gone its name tells it.
                with contextlib.suppress(OSError):
                    strangers[on, direction] = line.strangers()
        return _Sight(
            current_cookie(),
            {name: _index_of(name) for name in self._asked},
            {on.ifindex: _name_of(on.ifindex) for on in self._attachments.on_interfaces},
            strangers,
        )

    def _handle_lost_namespace(self, now_s: float) -> None:
        """It has ended, and perhaps another has its name; or only its name is gone."""
        for asked in self._asked.values():
            for on in [on for on in asked.on if not on.is_alive()]:
                self._forget(asked, on)
            if not asked.on:
                self._set_gap(asked, Gap.NAMESPACE_GONE, now_s)
        if self._attachments.on_interfaces:
            news = "has lost its name: what is attached goes on, and what comes again is not seen"
        else:
            news = "has ended: nothing is measured any more; start otelbpf again for another one"
        if news != self._lost_namespace:
            self._lost_namespace = news
            _log.warning("network namespace %s %s", self._netns.name, news)

    def _handle_interface(self, name: str, asked: _Asked, sight: _Sight, now_s: float) -> None:
        for on in list(asked.on):
            called = sight.names[on.ifindex]
            if not called:
                self._forget(asked, on)
            elif called != on.called:
                _log.warning("interface %s is called %s now, and measured", on.called, called)
                on.called = called
        if not asked.on and not sight.indices[name] and self._set_gap(asked, Gap.GONE, now_s):
            _log.warning(
                "interface %s is gone: nothing is measured on it until it comes again", name
            )

    def _attach_to_new(self, name: str, asked: _Asked, index: int, now_s: float) -> None:
        if index not in (0, asked.given_up, *(on.ifindex for on in asked.on)):
            self._attach(name, asked, index, "is there again", now_s)

    def _attach(self, name: str, asked: _Asked, index: int, what: str, now_s: float) -> None:
        try:
            self._netns.run(lambda: require_ethernet(_name_of(index)))
            on = self._attachments.attach_again(name, index)
        except (OtelbpfError, OSError) as error:
            if not asked.on:
                self._set_gap(asked, Gap.REFUSED, now_s)
            if str(error) != asked.refusal:
                asked.refusal = str(error)
                _log.warning("interface %s %s, and is not measured: %s", name, what, error)
            return
        asked.on.append(on)
        asked.refusal = ""
        gap_s = now_s - asked.since_s if asked.gap else 0.0
        self._set_gap(asked, None, now_s)
        _log.warning(
            "interface %s %s, and is measured%s%s", name, what,
            f"; it was not for {gap_s:.1f} s" if gap_s else "",
            f"; absent: {on.left_alone}" if on.left_alone != asked.left_alone else "",
        )  # fmt: skip
        asked.left_alone = on.left_alone

    def _forget(self, asked: _Asked, on: OnInterface) -> None:
        asked.on.remove(on)
        self._former.add(on.ifindex)
        for direction in on.lines:
            self._strangers.pop((on, direction), None)
        self._attachments.detach_from(on)

    def _handle_line(
        self,
        asked: _Asked,
        on: OnInterface,
        direction: str,
        strangers: list[Stranger] | None,
        now_s: float,
    ) -> None:
        where = f"TC {direction} of {on.called}"
        if strangers is None:
            self._forget(asked, on)
            if asked.may_move():
                self._attach(on.name, asked, on.ifindex, "had lost otelbpf's programs", now_s)
            else:
                asked.given_up = on.ifindex
                self._set_gap(asked, Gap.REFUSED, now_s)
                _log.warning("somebody takes otelbpf's programs off %s time and again", where)
            return
        new = [each for each in strangers if (direction, each.key) not in asked.met]
        asked.met |= {(direction, each.key) for each in new}
        if new and self._go_first(asked, on, direction):
            strangers = []
            _log.warning("%s came before otelbpf at %s, which is first again", _list(new), where)
        new = [each for each in strangers if (direction, each.key) not in asked.told]
        asked.told |= {(direction, each.key) for each in new}
        if new:
            _log.warning("%s is before otelbpf at %s: what it keeps is missed", _list(new), where)
        self._strangers[on, direction] = strangers
        if asked.gap is Gap.BEHIND and not any(self.strangers(on, each) for each in on.lines):
            self._set_gap(asked, None, now_s)
            _log.warning("interface %s is measured again", on.called)

    def _go_first(self, asked: _Asked, on: OnInterface, direction: str) -> bool:
        line = on.lines[direction]
        if not line.can_move or not asked.may_move():
            return False
        try:
            self._netns.run(line.go_first)
        except (KernelError, OSError):
            return False
        on.attached_ktime_ns = time.monotonic_ns()
        return True

    def _set_gap(self, asked: _Asked, gap: Gap | None, now_s: float) -> bool:
        """True: that is new."""
        if asked.gap is gap:
            return False
        asked.unmeasured_s = dict(_coverage(asked, now_s).unmeasured_s)
        asked.gap, asked.since_s = gap, now_s
        return True


def _coverage(asked: _Asked, now_s: float) -> Coverage:
    gap, unmeasured_s = asked.gap, dict(asked.unmeasured_s)
    if gap is None:
        return Coverage(None, unmeasured_s)
    unmeasured_s[gap] = unmeasured_s.get(gap, 0.0) + now_s - asked.since_s
    return Coverage(gap, unmeasured_s, asked.since_s)


def _list(strangers: list[Stranger]) -> str:
    return ", ".join(dict.fromkeys(map(str, strangers)))


def _index_of(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        return 0


def _name_of(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return ""

# SPDX-License-Identifier: Apache-2.0
"""Looks out for what is not measured, and says so: nothing is missed in silence."""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

from otelbpf.agent.config import Config
from otelbpf.agent.hints import Cause, Hints, Way, nobody_listens
from otelbpf.agent.notices import Notice, NoticeReader
from otelbpf.agent.watch import Watcher
from otelbpf.errors import KernelError, UsageError
from otelbpf.host.conntrack import led_elsewhere, on_the_wire
from otelbpf.host.interfaces import require_ethernet
from otelbpf.host.netns import Netns
from otelbpf.host.processes import executable_name, listening_ports, who_listens
from otelbpf.kernel.attach import Attachments
from otelbpf.kernel.loader import Programs
from otelbpf.kernel.on_interface import OnInterface
from otelbpf.kernel.records import Counter, NoticeKind
from otelbpf.ledger.tally import Coverage
from otelbpf.protocols.urls import authority_of

_log = logging.getLogger(__name__)

_UNSEEN = (NoticeKind.UNSEEN, NoticeKind.UNSEEN_OUT)
# A server may be about to start, and requests about to come.
_LISTENERS_AFTER_S = 2.0
# How old the ready file gets.
_RENEW_S = 1.0
# How often, and of how many connections, it is asked for whom they came.
_HIDDEN_S = 1.0
_HIDDEN_MOST = 1_024


class ReadyFile:
    """Is there while all is measured that was asked for, and never old.

    One that a killed or hanging agent leaves behind is known by its age.

    Args:
        path: None: there is none.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._is_there = False
        self._renew_s = 0.0
        self._is_failure_told = False

    def set(self, is_there: bool, now_s: float) -> None:
        """Makes it, renews it if it is time to, or takes it away.

        Args:
            now_s: on the monotonic clock.
        """
        is_due = is_there != self._is_there or (is_there and now_s >= self._renew_s)
        if self._path is None or not is_due:
            return
        self._is_there, self._renew_s = is_there, now_s + _RENEW_S
        try:
            if is_there:
                self._path.touch()
            else:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            # Its age will tell. Requests are measured all the same.
            if not self._is_failure_told:
                self._is_failure_told = True
                _log.warning("cannot write the ready file %s (%s)", self._path, error.strerror)


class Lookout:
    """Begins when all is attached. Close it before anything is detached.

    Args:
        cookie: of the measured namespace.
        now_s: on the monotonic clock.
    """

    def __init__(
        self,
        programs: Programs,
        attachments: Attachments,
        netns: Netns,
        cookie: int,
        config: Config,
        now_s: float,
    ) -> None:
        self._programs = programs
        self._netns = netns
        self._ports = config.ports
        self._watcher = Watcher(attachments, netns, cookie, config.interfaces)
        self._notices = NoticeReader(programs)
        self._hints = Hints()
        self._ready = ReadyFile(config.ready_file)
        self._listeners_at_s: float | None = now_s + _LISTENERS_AFTER_S
        self._hidden: list[tuple[Notice, OnInterface]] = []
        self._hidden_at_s = self._now_s = now_s
        programs.set_complete(True)
        self._ready.set(True, now_s)

    def look(self, now_s: float, *, is_quiet: bool = False) -> dict[str, Coverage]:
        """Several times a second: mends what can be mended, and says what there is to be said.

        Args:
            is_quiet: no request has come for a while: once a second will do.
        Returns:
            whether the interfaces are measured that were asked for, by name.
        """
        self._now_s = now_s
        self._watcher.look(now_s, is_quiet=is_quiet)
        self._gather(now_s)
        if self._listeners_at_s is not None and now_s >= self._listeners_at_s:
            self._listeners_at_s = None
            self._look_for_listeners()
        self._say()
        self._ready.set(self._watcher.is_whole, now_s)
        return self._watcher.coverage(now_s)

    def close(self) -> None:
        """Says what is still to be said; from here on nothing is missed that passes unseen."""
        self._ready.set(False, self._now_s)
        self._programs.set_complete(False)
        self._hidden_at_s = self._now_s
        self._gather(self._now_s)
        self._say(at_end=True)
        self._notices.close()

    def _gather(self, now_s: float) -> None:
        """Finds out why connections are not measured."""
        notices = self._notices.read()
        if any(notice.kind in _UNSEEN and self._should_be_seen(notice) for notice in notices):
            # Somebody may have come in front of the programs just now.
            self._watcher.look(now_s, at_lines=True)
        causes = (self._cause(notice, now_s) for notice in notices)
        self._hints.add([cause for cause in causes if cause is not None], now_s)
        if self._hidden and now_s >= self._hidden_at_s:
            # All connections of the kernel's are looked through for it.
            self._hidden_at_s = now_s + _HIDDEN_S
            self._hints.add(self._causes_of_hidden(now_s), now_s)

    def _say(self, *, at_end: bool = False) -> None:
        for hint in self._hints.due(self._now_s, at_end=at_end):
            _log.warning("%s", hint)

    def _on(self, notice: Notice) -> OnInterface | None:
        """The measured interface that its bytes pass."""
        return self._watcher.measured().get(notice.ifindex)

    def _should_be_seen(self, notice: Notice) -> bool:
        on = self._on(notice)
        return on is not None and notice.ktime_ns > on.attached_ktime_ns

    def _cause(self, notice: Notice, now_s: float) -> Cause | None:
        """None: it has been told already, of the interface, or it is to be found out."""
        kind, port, is_client = notice.kind, notice.port, notice.is_client
        if kind not in _UNSEEN:
            return Cause(kind, port, is_client)
        on = self._on(notice)
        if on is None:
            return self._cause_elsewhere(notice)
        if not self._should_be_seen(notice):
            return None
        if kind is NoticeKind.UNSEEN and not is_client and len(self._hidden) < _HIDDEN_MOST:
            self._hidden.append((notice, on))
            return None
        return self._cause_there(notice, on, now_s)

    def _cause_there(self, notice: Notice, on: OnInterface, now_s: float) -> Cause:
        """Of bytes that pass a measured interface, and for the socket itself."""
        cause = (notice.kind, notice.port, notice.is_client, on.called)
        direction = "ingress" if notice.kind is NoticeKind.UNSEEN else "egress"
        strangers = self._watcher.strangers(on, direction)
        if not strangers:
            return Cause(*cause, Way.HIDDEN)
        self._watcher.blame_strangers(on, now_s)
        return Cause(*cause, Way.BEHIND, ", ".join(dict.fromkeys(map(str, strangers))))

    def _cause_elsewhere(self, notice: Notice) -> Cause | None:
        """Of bytes that pass an interface which is not measured."""
        if self._watcher.was_measured(notice.ifindex):
            return None
        cause = (notice.kind, notice.port, notice.is_client)
        try:
            name = self._netns.run(lambda: socket.if_indextoname(notice.ifindex))
            self._netns.run(lambda: require_ethernet(name))
        except UsageError:
            return Cause(*cause, name, Way.NO_ETHERNET)
        except (OSError, KernelError):
            # While one of those asked for is gone, it may well have been that one.
            return Cause(*cause) if self._watcher.is_whole else None
        return Cause(*cause, name, Way.UNMEASURED)

    def _causes_of_hidden(self, now_s: float) -> list[Cause]:
        """Of bytes that came in on a measured interface: for whom did they come?"""
        hidden, self._hidden = self._hidden, []
        wires = on_the_wire([(notice.peer, notice.local) for notice, _ in hidden], self._netns)
        causes = []
        for notice, on in hidden:
            host, port = wires.get((notice.peer, notice.local), ("", 0))
            cause = (notice.kind, notice.port, notice.is_client, on.called)
            if not port:
                causes.append(self._cause_there(notice, on, now_s))
            elif port in self._ports:
                causes.append(Cause(*cause, Way.READDRESSED, authority_of(host, port)))
            else:
                causes.append(Cause(*cause, Way.REDIRECTED, str(port)))
        return causes

    def _look_for_listeners(self) -> None:
        """A mistyped port shows by nobody listening on it, and by no request."""
        try:
            unheard = set(self._ports) - listening_ports(self._netns)
            # Requests to it may be redirected; of several ports nobody knows whose they were.
            if not unheard or (len(self._ports) == 1 and self._programs.counts()[Counter.SEEN]):
                return
            # Where REDIRECT or DNAT leads to another port nobody need listen on this one.
            unheard -= led_elsewhere(unheard, self._netns)
            listeners = who_listens(self._netns) if unheard else {}
        except KernelError:
            return  # the namespace has ended, which is told
        others = {
            port: executable_name(min(pids)) if pids else ""
            for port, pids in listeners.items()
            if port not in self._ports and os.getpid() not in pids
        }
        for port in sorted(unheard - listeners.keys()):
            _log.warning("%s", nobody_listens(port, others, self._netns.name))

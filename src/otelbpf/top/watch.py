# SPDX-License-Identifier: Apache-2.0
"""`otelbpf top`: an agent that exports nothing, and a view of what it adds up.

The agent runs in a thread, the view in the main thread: signals arrive there, and so does
whatever else ends the view, which is what has a terminal to restore.
"""

from __future__ import annotations

import contextlib
import logging.handlers
import math
import os
import select
import signal
import socket
import sys
import termios
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from types import FrameType

from rich.console import Console, RenderableType
from rich.control import Control
from rich.screen import Screen

from otelbpf.agent.config import Config
from otelbpf.agent.run import Running, run
from otelbpf.errors import UsageError
from otelbpf.host import rights
from otelbpf.ledger.tally import Sums
from otelbpf.policy.sampler import Sampler
from otelbpf.top.rows import Sort
from otelbpf.top.state import State

#: No request becomes a span.
KEEP_NOTHING = Sampler(bound=0, parent_based=False)
_EXPORT_NOTHING = {"OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none"}
# SIGHUP: the terminal is gone; SIGQUIT is on a key, too.
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
# Where termios has what.
_IFLAG, _LFLAG, _CC = 0, 3, 6


@dataclass
class _Flag:
    """Without a lock, which a signal handler could find taken."""

    raised: bool = False

    def is_set(self) -> bool:
        return self.raised

    def set(self) -> None:
        self.raised = True


class _Alarm:
    """Ends the view's waiting: at a signal, or from another thread."""

    def __enter__(self) -> _Alarm:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(self, *_: object) -> None:
        signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()

    def ring(self) -> None:
        # One that is full wakes as well.
        with contextlib.suppress(BlockingIOError):
            self._writer.send(b"\0")

    def wait(self, seconds: float | None = None, keys: int | None = None) -> bool:
        """Waits for the alarm, that long, or until there are keys to read; are there any?"""
        fds = [self._reader.fileno(), *([] if keys is None else [keys])]
        ready, _, _ = select.select(fds, [], [], seconds if seconds is None else max(0.0, seconds))
        if fds[0] in ready:
            self._reader.recv(4096)
        return keys in ready


def top(
    config: Config,
    environment: Mapping[str, str],
    console: Console,
    on_ready: Callable[[Running], None],
    *,
    title: str,
    interval_s: float,
    sort: Sort,
    is_live: bool,
) -> Sums:
    """Measures, and shows it until a signal, `q` or the end of the configured duration.

    Args:
        config: whose series are added up.
        environment: the OTEL_* variables; what they say of exporters is left aside.
        console: to show it on.
        on_ready: called once everything is attached, before anything is shown.
        title: what is measured, for people.
        interval_s: between two snapshots.
        sort: by what, at first.
        is_live: the console is a terminal: the view is redrawn, and keys are read; else each
            interval's table is printed. All requests' table comes last.
    Returns:
        the sums at the end; nothing is in flight any more.
    Raises:
        OtelbpfError: what failed, and what to do; nothing is left attached.
        BrokenPipeError, SystemExit: nobody reads the console any more; newer versions of rich
            say so by the latter. Nothing is left attached either.
    """
    config = replace(config, sampler=KEEP_NOTHING)
    ready: list[Running] = []
    leave, stop = _Flag(), _Flag()
    with _Alarm() as alarm, _ended_by_signals(leave), ThreadPoolExecutor(1) as pool:

        def is_ready(running: Running) -> None:
            ready.append(running)
            alarm.ring()

        agent = pool.submit(run, config, {**environment, **_EXPORT_NOTHING}, stop, is_ready)
        # The agent's thread has them.
        rights.give_up(())
        agent.add_done_callback(lambda _: alarm.ring())

        def has_ended() -> bool:
            return leave.is_set() or agent.done()

        try:
            while not (ready or has_ended()):
                alarm.wait()
            if ready and not has_ended():
                on_ready(ready[0])
                state = State(ready[0], title, interval_s, sort, keys=is_live)
                with _screen(console) if is_live else _pages(console) as surface:
                    _watch(state, surface, alarm, has_ended, config.duration_s)
                _print(console, state.of_all(console))
        finally:
            # Not earlier: until the agent is told to stop, snapshots may be taken of it.
            stop.set()
            if leave.is_set():
                # The terminal is as it was: whoever will not wait for the rest may say so.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
            sums = agent.result()
    return sums


def _watch(
    state: State,
    surface: _Surface,
    alarm: _Alarm,
    has_ended: Callable[[], bool],
    duration_s: float | None,
) -> None:
    """Shows each interval, and does as keys say, until that is to end."""
    end_s = math.inf if duration_s is None else state.began_s + duration_s
    surface.show(state, False)
    while not has_ended():
        has_keys = alarm.wait(min(state.due_s, end_s) - time.monotonic(), surface.keys)
        if has_keys and surface.keys is not None and not state.press(_read(surface.keys)):
            return
        if time.monotonic() >= end_s:
            return
        is_news = time.monotonic() >= state.due_s
        if is_news:
            state.take()
        surface.show(state, is_news)


def _read(fd: int) -> bytes:
    """What was typed; as if it were `q` where nothing ever will be again."""
    try:
        return os.read(fd, 1024) or b"q"
    except OSError:
        return b"q"


@contextlib.contextmanager
def _ended_by_signals(leave: _Flag) -> Iterator[None]:
    def handle(_number: int, _frame: FrameType | None) -> None:
        leave.set()

    # The alarm hears of a new size only if somebody handles the signal.
    handlers = {number: handle for number in _ENDING} | {signal.SIGWINCH: lambda *_: None}
    before = {
        number: signal.signal(number, handler)
        for number, handler in handlers.items()
        # As nohup asks.
        if number is not signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Surface:
    """Where the view is shown.

    Attributes:
        show: called whenever something may have changed, and told whether there is a new
            snapshot.
        keys: the file descriptor that they are read from; None: there are none.
    """

    show: Callable[[State, bool], None]
    keys: int | None = None


@contextlib.contextmanager
def _pages(console: Console) -> Iterator[_Surface]:
    """One table below the other."""

    def show(state: State, is_news: bool) -> None:
        if is_news:
            _print(console, state.frame(console, None))

    yield _Surface(show)


def _print(console: Console, what: RenderableType) -> None:
    with _written():
        console.print(what)


@contextlib.contextmanager
def _written() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UsageError(
            f"cannot write to standard output: {error.strerror}; nothing is measured any more"
        ) from error


@contextlib.contextmanager
def _screen(console: Console) -> Iterator[_Surface]:
    """The whole terminal; it is as it was before, however this is left."""
    keys = sys.stdin.fileno() if sys.stdin.isatty() else None
    with _messages_later() as messages, _typed(keys), console.screen():

        def show(state: State, _is_news: bool) -> None:
            notes = [(message.getMessage(), True) for message in messages[-1:]]
            what = Screen(state.frame(console, console.height, notes))
            # In one piece, over the last one.
            with _written(), console:
                console.control(Control.home())
                console.print(what, end="")

        yield _Surface(show, keys)


@contextlib.contextmanager
def _typed(fd: int | None) -> Iterator[None]:
    """Keys are read as they are pressed, and not shown."""
    if fd is None:
        yield
        return
    before = termios.tcgetattr(fd)
    mode = termios.tcgetattr(fd)
    mode[_LFLAG] &= ~(termios.ICANON | termios.ECHO)
    # Neither could restore the terminal: to be stopped, or to wait for Ctrl-Q.
    mode[_CC][termios.VSUSP] = b"\0"
    mode[_IFLAG] &= ~termios.IXON
    termios.tcsetattr(fd, termios.TCSANOW, mode)
    try:
        yield
    finally:
        # Nothing to restore where the terminal itself is gone.
        with contextlib.suppress(termios.error):
            termios.tcflush(fd, termios.TCIFLUSH)
            termios.tcsetattr(fd, termios.TCSANOW, before)


@contextlib.contextmanager
def _messages_later() -> Iterator[list[logging.LogRecord]]:
    """What is logged is kept, and told at the end: it would be written across the screen."""
    root = logging.getLogger()
    before = root.handlers[:]
    kept = logging.handlers.BufferingHandler(sys.maxsize)
    root.handlers[:] = [kept]
    try:
        yield kept.buffer
    finally:
        root.handlers[:] = before
        for record in kept.buffer:
            root.handle(record)

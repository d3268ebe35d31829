# SPDX-License-Identifier: Apache-2.0
"""A handler's stamps belong to the request that its thread read last, and to no other."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import re
import secrets
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
from lab import Lab, Worker, laboratory, receive
from messages import OK, request
from meter import Meter, load, stamps

from otelbpf.kernel import libbpf
from otelbpf.kernel.records import FixedLength, Stamp
from otelbpf.kernel.settings import Part
from otelbpf.kernel.uprobe_multi import attach_uprobes
from otelbpf.userspace import uprobes
from otelbpf.userspace.elf import Elf
from otelbpf.userspace.handlers import find_handlers

pytestmark = pytest.mark.guest

_SOURCE = r"""
#include <setjmp.h>
typedef void inside(void);
static jmp_buf out;
static int leaves;
__attribute__((noinline)) void handle(inside *f)
{
#ifdef ASKS
	if (!f)
		return;
#endif
	f();
	if (leaves)
		longjmp(out, 1);
	__asm__ volatile("");
}
void outside(inside *f) { f(); __asm__ volatile(""); }
void catch(inside *f)
{
	leaves = 1;
	if (!setjmp(out))
		handle(f);
	leaves = 0;
}
"""
HANDLED = {Stamp.HANDLER_START, Stamp.HANDLER_END}


#: From here on many uprobes are one link; before, and of one process, each has its own.
LINKS_OF_MANY = (6, 6)


@dataclass(frozen=True)
class Way:
    """How the library is built, and probed.

    Attributes:
        by_path: in all processes, not in this one.
        alone: as if each place had to have a link of its own.
    """

    options: tuple[str, ...] = ()
    by_path: bool = False
    alone: bool = False


WAYS = {
    "of this process": Way(),
    "behind a jump target's mark": Way(("-fcf-protection", "-fno-omit-frame-pointer"), True),
    "behind a comparison, one by one": Way(("-DASKS",), True, True),
}


@dataclass(frozen=True)
class Handlers:
    """A library whose functions call back: `handle`, which is probed, and others."""

    library: ctypes.CDLL
    path: Path
    way: Way

    def call(self, name: str, inside: Callable[[], object] = lambda: None) -> None:
        """Calls a function of the library, and `inside` in it."""
        self.library[name](ctypes.CFUNCTYPE(None)(inside))


@pytest.fixture(scope="module", params=WAYS.values(), ids=[*WAYS])
def handlers(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Handlers:
    directory = tmp_path_factory.mktemp("handlers")
    source, library = directory / "handlers.c", directory / "handlers.so"
    source.write_text(_SOURCE)
    way = request.param
    command = ["gcc", "-O2", "-shared", "-fPIC", *way.options, source, "-o", library]
    subprocess.run(command, check=True)
    return Handlers(ctypes.CDLL(str(library)), library, way)


def refuse(*_: object, **__: object) -> NoReturn:
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.fixture(scope="module")
def _attached(handlers: Handlers) -> Iterator[Meter]:
    target = handlers.path if handlers.way.by_path else os.getpid()
    found = tuple(find_handlers(f"{target}:handle"))
    with laboratory() as lab, pytest.MonkeyPatch.context() as patch:
        if handlers.way.alone:
            patch.setattr(uprobes, "attach_uprobes", refuse)
        meter = load(lab, parts=frozenset({Part.HANDLERS, Part.GO_HANDLERS}))
        try:
            with meter.attached(handlers=found):
                yield meter
        finally:
            meter.close()


@pytest.fixture
def meter(_attached: Meter) -> Iterator[Meter]:
    _attached.begin()
    yield _attached
    _attached.end()


@pytest.fixture
def lab(meter: Meter) -> Lab:
    return meter.lab


def order(record: np.void) -> list[Stamp]:
    found = stamps(record)
    return sorted(found, key=found.get)


def test_where_it_is_probed(handlers: Handlers) -> None:
    """Beyond what the kernel would have the processor execute by itself."""
    ((start,),) = (each.starts for each in find_handlers(f"{handlers.path}:handle"))
    with Elf(handlers.path) as elf:
        (symbol,) = elf.symbols("handle")
        passed_over = start.offset - elf.offset_of(symbol.address)
    assert passed_over == {(): 0, ("-DASKS",): 3}.get(handlers.way.options, 4)


@pytest.mark.parametrize("of_all", [True, False])
def test_places_of_a_file_are_one_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of_all: bool
) -> None:
    """Which goes at once, and not place by place: the kernel waits for each."""
    # This process keeps what it has loaded.
    functions, name = 20, f"many_{secrets.token_hex(4)}_"
    source, library = tmp_path / "many.c", tmp_path / "many.so"
    source.write_text(
        "\n".join(f"int {name}{n}(int x) {{ return x + {n}; }}" for n in range(functions))
    )
    subprocess.run(["gcc", "-O2", "-shared", "-fPIC", source, "-o", library], check=True)
    loaded = ctypes.CDLL(str(library))
    target = library if of_all else os.getpid()
    found = tuple(find_handlers(f"{target}:{name}*"))
    alone: list[object] = []
    attach = libbpf.attach_uprobe

    def attach_alone(*arguments: object, **named: object) -> tuple[int, int]:
        alone.append(arguments)
        return attach(*arguments, **named)

    monkeypatch.setattr(libbpf, "attach_uprobe", attach_alone)
    # Handlers that are attached one by one may be there as long as the module.
    monkeypatch.setattr(uprobes, "attach_uprobes", attach_uprobes)
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    with (
        laboratory() as lab,
        contextlib.closing(load(lab, parts=frozenset({Part.HANDLERS}))) as meter,
    ):
        with meter.attached(handlers=found):
            assert len(alone) == (0 if of_all and release >= LINKS_OF_MANY else 2 * functions)
            meter.begin()
            pair = lab.connect()
            for number in range(functions):
                pair.ask(request())
                assert loaded[f"{name}{number}"](1) == number + 1
                pair.answer(OK)
                assert stamps(meter.record()).keys() >= HANDLED
            meter.end()
        assert loaded[f"{name}3"](1) == 4


def test_a_call_between_reading_and_writing(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pair = lab.connect()
    for _ in range(23):
        pair.ask(request())
        handlers.call("handle")
        pair.answer(OK)
        found = order(meter.record())
        first = found.index(Stamp.READ)
        assert found[first : first + 4] == [
            Stamp.READ, Stamp.HANDLER_START, Stamp.HANDLER_END, Stamp.WRITE,
        ]  # fmt: skip


def test_what_a_handler_calls_is_a_part_of_it(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pair = lab.connect()
    pair.ask(request())
    seen: list[np.void] = []

    def nested() -> None:
        handlers.call("handle", lambda: handlers.call("handle"))
        handlers.call("handle")
        pair.server.sendall(OK[:10])

    handlers.call("handle", nested)
    pair.server.sendall(OK[10:])
    pair.client.recv(len(OK))
    seen.append(meter.record())
    found = order(seen[0])
    assert found.index(Stamp.HANDLER_START) < found.index(Stamp.WRITE)
    assert found.index(Stamp.HANDLER_END) > found.index(Stamp.WRITE)


def test_no_call_no_stamps(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pair = lab.connect()
    handlers.call("handle")
    pair.exchange(request(), OK)
    handlers.call("outside")
    assert HANDLED.isdisjoint(stamps(meter.record()))


def test_a_call_that_began_before_the_request_was_read(
    lab: Lab, meter: Meter, handlers: Handlers
) -> None:
    pair = lab.connect()
    handlers.call("handle", lambda: pair.ask(request()))
    pair.answer(OK)
    assert HANDLED.isdisjoint(stamps(meter.record()))


def test_a_call_after_the_answer(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pair = lab.connect()
    pair.exchange(request(), OK)
    handlers.call("handle")
    pair.ask(request())
    pair.answer(OK)
    assert all(HANDLED.isdisjoint(stamps(record)) for record in meter.records(2))


def test_another_thread_s_call(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pair = lab.connect()
    pair.ask(request())
    with Worker(lambda: handlers.call("handle")):
        pass
    pair.answer(OK)
    assert HANDLED.isdisjoint(stamps(meter.record()))


def test_threads_have_a_request_each(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    pairs = [lab.connect() for _ in range(8)]

    def serve(number: int) -> None:
        pair = pairs[number]
        for turn in range(10):
            pair.ask(request(target=f"/{number}/{turn}"))
            if number % 2:
                handlers.call("handle")
            pair.answer(OK)

    workers = [Worker(lambda number=number: serve(number)) for number in range(8)]
    for worker in workers:
        worker.__enter__()
    for worker in workers:
        worker.__exit__(None, None, None)
    for record in meter.records(80):
        number = int(bytes(record["http1"]["request_line"]).split(b"/")[1])
        assert (stamps(record).keys() >= HANDLED) == bool(number % 2)


def test_a_call_that_never_returns(lab: Lab, meter: Meter, handlers: Handlers) -> None:
    """It leaves by longjmp(): no end is better than another call's."""
    pair, other = lab.connect(), lab.connect()
    pair.ask(request(target="/left"))
    handlers.call("catch")
    other.ask(request(target="/right"))
    handlers.call("handle")
    other.answer(OK)
    pair.answer(OK)
    right, left = meter.records(2)
    assert stamps(right).keys() >= HANDLED
    assert stamps(left).keys() & HANDLED == {Stamp.HANDLER_START}


def start_with_number(thread: threading.Thread, number: int) -> bool:
    """Starts a thread; false: another one has got the number just before."""
    Path("/proc/sys/kernel/ns_last_pid").write_text(str(number - 1))
    thread.start()
    return thread.native_id == number


def test_a_thread_is_not_taken_for_one_whose_number_ends_alike(
    lab: Lab, meter: Meter, handlers: Handlers
) -> None:
    """It is woken by a connection of its own, reads nothing, and calls the handler."""
    mine, others = lab.connect(), lab.connect()
    mine.ask(request(target="/mine"))
    number = (threading.get_native_id() + FixedLength.READER_SLOTS) % (2 * FixedLength.READER_SLOTS)
    stopped = threading.Event()

    def wait_and_call() -> None:
        ready = select.poll()
        ready.register(others.server, select.POLLIN)
        while not stopped.is_set() and not ready.poll(100):
            pass
        if not stopped.is_set():
            handlers.call("handle")

    threads: list[threading.Thread] = []
    while not threads or threads[-1].native_id != number:
        threads.append(threading.Thread(target=wait_and_call))
        if not start_with_number(threads[-1], number):
            stopped.set()
            threads[-1].join()
            stopped.clear()
        assert len(threads) < 1000
    others.client.sendall(request(target="/others"))
    threads[-1].join()
    mine.answer(OK)
    assert not HANDLED & set(stamps(meter.record(others_in_flight=1)))
    receive(others.server, len(request(target="/others")))
    others.answer(OK)
    assert not HANDLED & set(stamps(meter.record()))

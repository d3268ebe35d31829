# SPDX-License-Identifier: Apache-2.0
"""What a thread publishes when it begins a response is said of that response's request, or nothing.

The tests' own process is the server. It publishes by a library that it loads, and is found and read
as any other process is.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from lab import Lab, Pair, Worker, receive
from messages import OK, request, response
from meter import Meter
from test_causes import CALL, Gateway, assert_caused, call, split, upstreams_answer
from test_marks import JOINED, Mark

from otelbpf.kernel.records import Said
from otelbpf.userspace.thread_locals import ThreadLocal, find_thread_local

_SOURCE = r"""
#include <linux/io_uring.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/* So much that glibc has no room for it in the static block. */
#ifdef LARGE
__thread char large[1 << 16] = {1};
char *use_large(void) { return large; }
#endif

__thread const void *VARIABLE;
void publish(const void *record) { VARIABLE = record; }

/* A write that another one does, or this task on its way out of another system call. */
long send_by_ring(int fd, const void *data, unsigned size, int asynchronous)
{
	struct io_uring_params p = {};
	int ring = syscall(SYS_io_uring_setup, 1, &p);
	char *queue;
	struct io_uring_sqe *entry;
	long done;

	if (ring < 0)
		return -1;
	queue = mmap(0, p.sq_off.array + 4, PROT_READ | PROT_WRITE, MAP_SHARED, ring,
			IORING_OFF_SQ_RING);
	entry = mmap(0, sizeof(*entry), PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	memset(entry, 0, sizeof(*entry));
	entry->opcode = IORING_OP_SEND;
	entry->flags = asynchronous ? IOSQE_ASYNC : 0;
	entry->fd = fd;
	entry->addr = (uintptr_t)data;
	entry->len = size;
	*(unsigned *)(queue + p.sq_off.array) = 0;
	*(unsigned *)(queue + p.sq_off.tail) = 1;
	done = syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0);
	close(ring);
	return done;
}
"""
FLAVOURS = {
    "static": ["-mtls-dialect=gnu2"],
    "table": ["-mtls-dialect=gnu", "-DLARGE"],
    "table by descriptor": ["-mtls-dialect=gnu2", "-DLARGE"],
}
GOES_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

#: What another kernel may do in another way; the rest is the programs' own, and the same on all.
guest = pytest.mark.guest


class Record(ctypes.Structure):
    """The thread context record."""

    _fields_ = (
        ("trace_id", ctypes.c_uint8 * 16),
        ("span_id", ctypes.c_uint8 * 8),
        ("valid", ctypes.c_uint8),
        ("trace_flags", ctypes.c_uint8),
        ("attributes_size", ctypes.c_uint16),
    )

    @classmethod
    def new(
        cls, trace_id: bytes | None = None, span_id: bytes | None = None, valid: int = 1
    ) -> Record:
        trace_id = os.urandom(16) if trace_id is None else trace_id
        span_id = os.urandom(8) if span_id is None else span_id
        return cls((ctypes.c_uint8 * 16)(*trace_id), (ctypes.c_uint8 * 8)(*span_id), valid, 3)


class Publisher:
    """A library with the variable.

    Attributes:
        where: this process's threads have it.
    """

    def __init__(self, directory: Path, number: int, options: list[str]) -> None:
        # Of one name there is one in a process.
        name = f"published_{number}"
        source, library = directory / f"{name}.c", directory / f"{name}.so"
        source.write_text(_SOURCE)
        subprocess.run(
            [
                "gcc",
                "-O2",
                "-shared",
                "-fPIC",
                f"-DVARIABLE={name}",
                *options,
                source,
                "-o",
                library,
            ],
            check=True,
        )
        self._library = ctypes.CDLL(str(library))
        self.publish(None)
        where = find_thread_local(os.getpid(), name, {})
        assert where is not None
        self.where: ThreadLocal = where
        self._kept: Record | None = None

    def publish(self, record: Record | int | None) -> None:
        """For the calling thread. A number is an address."""
        self._kept = record if isinstance(record, Record) else None
        address = ctypes.addressof(record) if isinstance(record, Record) else record
        self._library.publish(ctypes.c_void_p(address))

    def send_by_ring(self, sock: socket.socket, data: bytes, *, asynchronous: bool) -> None:
        sent = self._library.send_by_ring(sock.fileno(), data, len(data), asynchronous)
        assert sent == 1


@pytest.fixture(scope="session")
def _publishers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Publisher]:
    directory = tmp_path_factory.mktemp("publishers")
    return {
        flavour: Publisher(directory, number, options)
        for number, (flavour, options) in enumerate(FLAVOURS.items())
    }


@pytest.fixture(params=["static"])
def publisher(
    request: pytest.FixtureRequest, _publishers: dict[str, Publisher], meter: Meter
) -> Iterator[Publisher]:
    """Known to the programs; publishes nothing."""
    publisher = _publishers[request.param]
    assert meter.programs.set_thread_local(os.getpid(), publisher.where.packed())
    try:
        yield publisher
    finally:
        meter.programs.forget_thread_local(os.getpid())
        publisher.publish(None)


def assert_said(record: np.void, said: Record) -> None:
    assert record["join"]["marked"] == Said.BY_THREAD
    assert bytes(record["join"]["trace_id"]) == bytes(said.trace_id)
    assert bytes(record["join"]["span_id"]) == bytes(said.span_id)
    assert record["join"]["trace_flags"] == 3


def assert_nothing_said(record: np.void) -> None:
    assert record["join"]["marked"] == Said.NOTHING
    assert bytes(record["join"]["trace_id"]) == bytes(16)
    assert bytes(record["join"]["span_id"]) == bytes(8)


def exchange(pair: Pair) -> None:
    pair.exchange(request(), OK)


@guest
@pytest.mark.parametrize("publisher", FLAVOURS, indirect=True)
def test_each_request_has_what_was_published_for_it(
    lab: Lab, meter: Meter, publisher: Publisher
) -> None:
    pair = lab.connect()
    for _ in range(23):
        said = Record.new()
        publisher.publish(said)
        exchange(pair)
        assert_said(meter.record(), said)
        publisher.publish(None)
        exchange(pair)
        assert_nothing_said(meter.record())


NOTHING = {
    "no record": None,
    "a record that is not valid": Record.new(valid=0),
    "a record that says more than that it is valid": Record.new(valid=2),
    "no trace": Record.new(trace_id=bytes(16)),
    "no span": Record.new(span_id=bytes(8)),
    "an address where nothing is": 8,
    "an address of the kernel's": 0xFFFF_FFFF_8100_0000,
}


@pytest.mark.parametrize("said", NOTHING.values(), ids=NOTHING)
def test_what_says_nothing(
    lab: Lab, meter: Meter, publisher: Publisher, said: Record | int | None
) -> None:
    pair = lab.connect()
    publisher.publish(said)
    exchange(pair)
    assert_nothing_said(meter.record())


@guest
@pytest.mark.parametrize("publisher", ["table"], indirect=True)
@pytest.mark.parametrize(
    "change",
    [{"module": 1 << 20}, {"generation": 1 << 40}, {"module": 0, "offset": -1 << 40}],
    ids=repr,
)
def test_a_place_that_no_thread_has(
    lab: Lab, meter: Meter, publisher: Publisher, change: dict[str, int]
) -> None:
    publisher.publish(Record.new())
    where = dataclasses.replace(publisher.where, **change)
    assert meter.programs.set_thread_local(os.getpid(), where.packed())
    exchange(lab.connect())
    assert_nothing_said(meter.record())


@guest
@pytest.mark.parametrize("publisher", FLAVOURS, indirect=True)
def test_another_thread_s_is_its_own(lab: Lab, meter: Meter, publisher: Publisher) -> None:
    publisher.publish(Record.new())
    pair = lab.connect()
    pair.ask(request())
    with Worker(lambda: pair.answer(OK)):
        pass
    assert_nothing_said(meter.record())


@guest
def test_a_process_that_is_not_known(lab: Lab, meter: Meter, publisher: Publisher) -> None:
    publisher.publish(Record.new())
    meter.programs.forget_thread_local(os.getpid())
    exchange(lab.connect())
    assert_nothing_said(meter.record())


def test_of_two_unanswered_requests_nobody_knows_which_it_is(
    lab: Lab, meter: Meter, publisher: Publisher
) -> None:
    pair, said = lab.connect(), Record.new()
    pair.ask(request())
    pair.ask(request())
    publisher.publish(Record.new())
    pair.answer(OK)
    publisher.publish(said)
    pair.answer(OK)
    first, second = meter.records(2)
    assert_nothing_said(first)
    assert_said(second, said)


def test_an_answer_to_what_was_not_read(lab: Lab, meter: Meter, publisher: Publisher) -> None:
    pair = lab.connect()
    publisher.publish(Record.new())
    pair.send_segment(request())
    pair.answer(OK)
    assert_nothing_said(meter.record())


def test_only_the_first_byte_counts(lab: Lab, meter: Meter, publisher: Publisher) -> None:
    pair, said, whole = lab.connect(), Record.new(), response(body=b"x" * 1000)
    for first, then in ((said, Record.new()), (said, None)):
        pair.ask(request())
        for record, part in ((first, whole[:20]), (then, whole[20:500]), (then, whole[500:])):
            publisher.publish(record)
            pair.answer(part)
        assert_said(meter.record(), said)
    publisher.publish(None)
    pair.ask(request())
    pair.answer(whole[:20])
    publisher.publish(said)
    pair.answer(whole[20:])
    assert_nothing_said(meter.record())


def test_what_follows_a_first_byte_that_has_not_left(
    lab: Lab, meter: Meter, publisher: Publisher
) -> None:
    pair = lab.connect()
    pair.ask(request())
    pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    pair.server.sendall(OK[:10])
    publisher.publish(Record.new())
    pair.server.sendall(OK[10:])
    pair.server.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    assert receive(pair.client, len(OK)) == OK
    assert_nothing_said(meter.record())


def test_before_the_response_comes_an_interim_one(
    lab: Lab, meter: Meter, publisher: Publisher
) -> None:
    pair, said = lab.connect(), Record.new()
    same_trace, another = Record.new(bytes(said.trace_id)), Record.new()
    for first, then, right in (
        (None, said, said),
        (said, None, said),
        (said, same_trace, same_trace),
        (said, another, said),
    ):
        pair.ask(request())
        publisher.publish(first)
        pair.answer(GOES_ON)
        publisher.publish(then)
        pair.answer(OK)
        assert_said(meter.record(), right)


def test_a_mark_says_more(lab: Lab, meter: Meter, publisher: Publisher) -> None:
    pair = lab.connect()
    publisher.publish(Record.new())
    for interim in (b"", GOES_ON):
        mark = Mark(trace_id=os.urandom(16))
        pair.ask(request())
        if interim:
            pair.answer(interim)
        assert mark.tell(pair.server) == JOINED
        pair.answer(OK)
        record = meter.record()
        assert record["join"]["marked"] == Said.BY_MARK
        assert bytes(record["join"]["trace_id"]) == mark.trace_id
        assert bytes(record["join"]["span_id"]) == mark.span_id


@guest
@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_goes_through_io_uring_may_be_anyones(
    lab: Lab, meter: Meter, publisher: Publisher, asynchronous: bool
) -> None:
    pair = lab.connect()
    pair.ask(request())
    publisher.publish(Record.new())
    publisher.send_by_ring(pair.server, OK, asynchronous=asynchronous)
    assert receive(pair.client, len(OK)) == OK
    assert_nothing_said(meter.record())


@pytest.fixture
def front(gateway: Meter) -> Iterator[Gateway]:
    front = Gateway(gateway)
    try:
        yield front
    finally:
        front.close()


@guest
def test_a_cause_and_what_it_causes_are_in_one_trace(
    gateway: Meter, front: Gateway, _publishers: dict[str, Publisher]
) -> None:
    publisher = _publishers["static"]
    assert gateway.programs.set_thread_local(os.getpid(), publisher.where.packed())
    caller, upstream = front.connect(), front.upstream()
    server_span = Record.new()
    client_span = Record.new(bytes(server_span.trace_id))
    try:
        caller.ask(request())
        with upstreams_answer(upstream, asked=CALL):
            publisher.publish(client_span)
            call(upstream, CALL)
        publisher.publish(server_span)
        caller.answer(OK)
    finally:
        publisher.publish(None)
        gateway.programs.forget_thread_local(os.getpid())
    (asked,), (caused,) = split(gateway.records(2))
    assert_said(asked, server_span)
    assert_caused(caused, asked)
    assert caused["join"]["marked"] == Said.BY_THREAD
    assert bytes(caused["join"]["trace_id"]) == bytes(server_span.trace_id)

# SPDX-License-Identifier: Apache-2.0
"""The ways in which servers wait, read and write: what each of them leaves in the ledger."""

from __future__ import annotations

import os
import queue
import select
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from lab import INTERFACE, Lab, Pair, Worker, receive, unread_bytes
from messages import OK, request, response
from meter import WHOLE, Meter, flags, stages, stamps
from support.commands import run
from support.waiting import wait_until

from otelbpf.kernel.records import Stamp

ASKED = request("POST", "/read", body=b"0123456789")
WAIT_NS = 200_000_000
SMALL_NS = 50_000_000


def by_epoll(sock: socket.socket) -> None:
    with select.epoll() as poller:
        poller.register(sock, select.EPOLLIN)
        assert poller.poll(5)


def by_poll(sock: socket.socket) -> None:
    poller = select.poll()
    poller.register(sock, select.POLLIN)
    assert poller.poll(5000)


def by_select(sock: socket.socket) -> None:
    assert select.select([sock], [], [], 5)[0]


@pytest.mark.parametrize("wait", [by_epoll, by_poll, by_select])
def test_a_reader_woken_through_a_poll_has_its_stamps(
    lab: Lab, meter: Meter, wait: Callable[[socket.socket], None]
) -> None:
    pair = lab.connect()

    def serve() -> None:
        for _ in range(23):
            wait(pair.server)
            assert receive(pair.server, len(ASKED)) == ASKED
            pair.server.sendall(OK)

    with Worker(serve) as worker:
        for _ in range(23):
            worker.wait_until_blocked_in("epoll_wait", "poll", "pselect6")
            pair.client.sendall(ASKED)
            receive(pair.client, len(OK))
    never_off = 0
    for record in meter.records(23):
        at = stamps(record)
        assert record["tid"] == worker.tid
        # Woken in the instant between going to sleep and giving up its CPU, it never did.
        never_off += Stamp.RUNNING not in at
        assert at[Stamp.QUEUED] <= at[Stamp.WOKEN] <= at.get(Stamp.RUNNING, at[Stamp.READ])
        assert at.get(Stamp.RUNNING, 0) <= at[Stamp.READ]
    assert never_off <= 3


def test_a_thread_that_only_hands_over_was_not_the_reader(lab: Lab, meter: Meter) -> None:
    """One thread is woken for the bytes; the one that reads them was woken by the first one."""
    pair = lab.connect()
    handed_over: queue.SimpleQueue[None] = queue.SimpleQueue()

    def dispatch() -> None:
        by_epoll(pair.server)
        handed_over.put(None)

    def work() -> None:
        handed_over.get(timeout=5)
        assert receive(pair.server, len(ASKED)) == ASKED
        pair.server.sendall(OK)

    with Worker(work) as worker, Worker(dispatch) as dispatcher:
        dispatcher.wait_until_blocked_in("epoll_wait")
        pair.client.sendall(ASKED)
        receive(pair.client, len(OK))
    record = meter.record()
    assert record["tid"] == worker.tid
    assert Stamp.READ in stamps(record)
    assert Stamp.WOKEN not in stamps(record)


@pytest.fixture
def _threaded_napi(lab: Lab) -> Iterator[None]:
    """The server's interface has a thread that hands over what comes: no softirq ends there."""
    # Who enters a namespace sees its interfaces in a sysfs of its own only.
    setting = f"/mnt/class/net/{INTERFACE}/threaded"
    inside = (
        "nsenter",
        f"--net=/run/netns/{lab.server_netns.name}",
        "unshare",
        "--mount",
        "sh",
        "-ec",
    )
    run(*inside, f"mount -t sysfs none /mnt; echo 1 >{setting}; grep -q 1 {setting}")
    yield
    run(*inside, f"mount -t sysfs none /mnt; echo 0 >{setting}")


@pytest.mark.usefixtures("_threaded_napi")
def test_who_was_woken_by_another_thread_was_not_woken_by_the_card(lab: Lab, meter: Meter) -> None:
    """It may well be on the processor on which the data were brought, by a thread of NAPI's."""
    pair = lab.connect()
    for _ in range(30):
        handed_over: queue.SimpleQueue[None] = queue.SimpleQueue()

        def dispatch(handed_over: queue.SimpleQueue[None] = handed_over) -> None:
            by_epoll(pair.server)
            handed_over.put(None)

        def work(handed_over: queue.SimpleQueue[None] = handed_over) -> None:
            handed_over.get(timeout=5)
            assert receive(pair.server, len(ASKED)) == ASKED
            pair.server.sendall(OK)

        with Worker(work) as worker, Worker(dispatch) as dispatcher:
            dispatcher.wait_until_blocked_in("epoll_wait")
            pair.client.sendall(ASKED)
            receive(pair.client, len(OK))
        record = meter.record()
        assert record["tid"] == worker.tid
        assert Stamp.WOKEN not in stamps(record)


def test_a_reader_that_is_not_woken_first_was_woken_all_the_same(lab: Lab, meter: Meter) -> None:
    """Both wait for the same bytes; the kernel wakes who came last first."""
    pair = lab.connect()

    def serve() -> None:
        assert receive(pair.server, len(ASKED)) == ASKED
        pair.server.sendall(OK)

    with Worker(serve) as reader:
        reader.wait_until_blocked_in("recv")
        with Worker(lambda: by_poll(pair.server)) as watcher:
            watcher.wait_until_blocked_in("poll")
            pair.client.sendall(ASKED)
            receive(pair.client, len(OK))
            # The bytes may be gone before the watcher can look: this it sees.
            pair.client.shutdown(socket.SHUT_WR)
    record = meter.record()
    assert record["tid"] == reader.tid
    at = stamps(record)
    assert at[Stamp.QUEUED] <= at[Stamp.WOKEN] <= at[Stamp.READ]


def test_a_peek_is_no_read(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.client.sendall(ASKED)
    assert pair.server.recv(100, socket.MSG_PEEK)
    time.sleep(WAIT_NS / 1e9)
    assert receive(pair.server, len(ASKED)) == ASKED
    pair.answer(OK)
    lengths = stages(meter.record())
    assert lengths.pop((Stamp.QUEUED, Stamp.READ)) >= WAIT_NS
    assert max(lengths.values()) < SMALL_NS


def read_by_readv(sock: socket.socket) -> None:
    os.readv(sock.fileno(), [bytearray(20), bytearray(len(ASKED))])


def read_by_recvmsg(sock: socket.socket) -> None:
    sock.recvmsg(len(ASKED))


def read_by_recv_into(sock: socket.socket) -> None:
    sock.recv_into(bytearray(len(ASKED)))


def read_by_os(sock: socket.socket) -> None:
    os.read(sock.fileno(), len(ASKED))


@pytest.mark.parametrize("read", [read_by_readv, read_by_recvmsg, read_by_recv_into, read_by_os])
def test_every_way_to_read(lab: Lab, meter: Meter, read: Callable[[socket.socket], None]) -> None:
    pair = lab.connect()
    pair.send_segment(ASKED)
    read(pair.server)
    assert unread_bytes(pair.server) == 0
    pair.answer(OK)
    at = stamps(meter.record())
    assert at[Stamp.QUEUED] < at[Stamp.READ] < at[Stamp.WRITE]
    assert Stamp.READ_LAST not in at


def test_bytes_spliced_out_of_the_socket_were_taken_too(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.send_segment(ASKED)
    reading, writing = os.pipe()
    try:
        assert os.splice(pair.server.fileno(), writing, len(ASKED)) == len(ASKED)
    finally:
        os.close(reading)
        os.close(writing)
    pair.answer(OK)
    record = meter.record()
    assert flags(record) == WHOLE
    at = stamps(record)
    assert at[Stamp.QUEUED] < at[Stamp.READ] < at[Stamp.WRITE]
    assert record["pid"] == os.getpid()
    meter.assert_next_is_right(pair, 1)


def test_a_request_read_byte_by_byte(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()
    pair.client.sendall(2 * ASKED)
    for _ in range(2 * len(ASKED)):
        assert len(pair.server.recv(1)) == 1
    pair.answer(2 * OK)
    first, second = meter.records(2)
    for record in (first, second):
        at = stamps(record)
        assert at[Stamp.READ] < at[Stamp.READ_LAST] < at[Stamp.WRITE]
    assert stamps(first)[Stamp.READ_LAST] < stamps(second)[Stamp.READ]


def write_by_sendfile(sock: socket.socket, data: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        sent = 0
        while sent < len(data):
            sent += os.sendfile(sock.fileno(), file.fileno(), sent, len(data) - sent)


def write_by_writev(sock: socket.socket, data: bytes) -> None:
    assert os.writev(sock.fileno(), [data[:10], data[10:]]) == len(data)


def write_by_sendmsg(sock: socket.socket, data: bytes) -> None:
    assert sock.sendmsg([data]) == len(data)


def write_with_more_to_come(sock: socket.socket, data: bytes) -> None:
    sock.send(data[:20], socket.MSG_MORE)
    sock.send(data[20:])


@pytest.mark.parametrize(
    "write", [write_by_sendfile, write_by_writev, write_by_sendmsg, write_with_more_to_come]
)
@pytest.mark.parametrize("size", [100, 20_000])
def test_every_way_to_write(
    lab: Lab, meter: Meter, write: Callable[[socket.socket, bytes], None], size: int
) -> None:
    pair = lab.connect()
    answered = response(body=bytes(size))
    pair.ask(ASKED)
    write(pair.server, answered)
    assert receive(pair.client, len(answered)) == answered
    record = meter.record()
    assert flags(record) == WHOLE
    assert record["response_bytes"] == len(answered)
    at = stamps(record)
    assert at[Stamp.READ] < at[Stamp.WRITE] < at[Stamp.TC_OUT] < at[Stamp.ACKED]


def test_eight_connections_at_once(lab: Lab, meter: Meter) -> None:
    """On all CPUs, with nobody in step: every record is of its own connection, none is missing."""
    each = 200
    pairs = [lab.connect() for _ in range(8)]

    def serve(pair: Pair) -> None:
        for number in range(each):
            size = len(request("POST", f"/{number}", body=b"x" * number))
            receive(pair.server, size)
            pair.server.sendall(response(body=b"y" * number))

    def ask(pair: Pair) -> None:
        for number in range(each):
            pair.client.sendall(request("POST", f"/{number}", body=b"x" * number))
            receive(pair.client, len(response(body=b"y" * number)))

    threads = [
        threading.Thread(target=side, args=(pair,)) for pair in pairs for side in (serve, ask)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    records = meter.records(8 * each)
    for pair in pairs:
        own = records[records["peer_port"] == pair.peer_port]
        assert own["ordinal"].tolist() == list(range(each))
        lines = [b"POST /%d HTTP/1.1" % number for number in range(each)]
        assert own["http1"]["request_line"].tolist() == lines
        assert own["request_body_bytes"].tolist() == list(range(each))
        assert own["response_body_bytes"].tolist() == list(range(each))
        assert set(map(flags, own)) == {WHOLE}
        for record in own:
            present = list(stamps(record).items())
            inward = [at for stamp, at in present if stamp <= Stamp.READ]
            outward = [at for stamp, at in present if stamp >= Stamp.WRITE]
            assert inward == sorted(inward)
            assert outward == sorted(outward)
            assert inward[-1] <= outward[0]
    wait_until(lambda: meter.in_flight() == 0, "all were done")

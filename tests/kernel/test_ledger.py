# SPDX-License-Identifier: Apache-2.0
"""The ledger of a plain request: all its stamps, in order, each telling its own wait."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from lab import (
    CLIENT_IPV4,
    CLIENT_IPV6,
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    SPARE_PORT,
    Lab,
    Pair,
    Worker,
    prepare,
    receive,
    unread_bytes,
)
from messages import OK, request
from meter import Meter, address, flags, stages, stamps
from support.waiting import wait_until

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

MS = 1_000_000
WAIT_NS = 200 * MS
SMALL_NS = 50 * MS
# Those of a request and a response of one segment each, both sides waiting for the other.
ALL_OF_A_SMALL_REQUEST = [
    Stamp.NIC, Stamp.TC, Stamp.TCP, Stamp.QUEUED, Stamp.WOKEN, Stamp.RUNNING, Stamp.READ,
    Stamp.WRITE, Stamp.TC_OUT, Stamp.ACKED,
]  # fmt: skip
REQUEST = request(target="/warm")

pytestmark = pytest.mark.guest


def serve(pair: Pair, count: int) -> None:
    """A server that blocks in recv() until a request is there."""
    for _ in range(count):
        assert receive(pair.server, len(REQUEST)) == REQUEST
        pair.server.sendall(OK)


def ask(pair: Pair, worker: Worker, count: int) -> None:
    """A client that asks only when the server has gone to sleep for it."""
    for _ in range(count):
        worker.wait_until_blocked_in("recv")
        pair.client.sendall(REQUEST)
        assert receive(pair.client, len(OK)) == OK


@pytest.mark.parametrize(
    ("listen", "server", "client"),
    [(SERVER_IPV4, SERVER_IPV4, CLIENT_IPV4), (SERVER_IPV6, SERVER_IPV6, CLIENT_IPV6)],
    ids=["ipv4", "ipv6"],
)
def test_23_requests_on_a_warm_connection_are_23_records_with_every_stamp(
    lab: Lab, meter: Meter, listen: str, server: str, client: str
) -> None:
    pair = lab.connect(listen)
    with Worker(lambda: serve(pair, 23)) as worker:
        ask(pair, worker, 23)
    records = meter.records(23)

    assert records["ordinal"].tolist() == list(range(23))
    assert len(set(records["connection_id"].tolist())) == 1
    for record in records:
        assert list(stamps(record)) == ALL_OF_A_SMALL_REQUEST
    times = records["stamp_ktime_ns"][:, ALL_OF_A_SMALL_REQUEST].astype(np.int64)
    assert (np.diff(times) >= 0).all(), "stamps out of order"
    assert (times[1:, 0] > times[:-1, -1]).all(), "a request before the last one's end"

    assert set(records["pid"].tolist()) == {os.getpid()}
    assert set(records["tid"].tolist()) == {worker.tid}
    assert set(map(flags, records)) == {RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED}
    assert set(records["status"].tolist()) == {200}
    assert set(records["request_bytes"].tolist()) == {len(REQUEST)}
    assert set(records["response_bytes"].tolist()) == {len(OK)}
    assert set(records["response_body_bytes"].tolist()) == {2}
    assert set(records["http1"]["http_minor"].tolist()) == {1}
    assert set(records["peer_port"].tolist()) == {pair.peer_port}
    assert set(records["local_port"].tolist()) == {PORT}
    assert {bytes(a) for a in records["peer_address"]} == {address(client)}
    assert {bytes(a) for a in records["local_address"]} == {address(server)}


def test_ipv4_on_a_dual_stack_socket_is_the_same_as_on_an_ipv4_one(lab: Lab, meter: Meter) -> None:
    listener = lab.socket("server", socket.AF_INET6)
    with listener, lab.socket("client", socket.AF_INET) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("::", SPARE_PORT))
        listener.listen()
        client.connect((SERVER_IPV4, SPARE_PORT))
        pair = lab.keep(Pair(client, prepare(listener.accept()[0])))
        with Worker(lambda: serve(pair, 1)) as worker:
            ask(pair, worker, 1)
        record = meter.record()
        lab.close_connections()
    assert list(stamps(record)) == ALL_OF_A_SMALL_REQUEST
    assert bytes(record["peer_address"]) == address(CLIENT_IPV4)
    assert bytes(record["local_address"]) == address(SERVER_IPV4)
    assert record["local_port"] == SPARE_PORT


def assert_only_wait(record: np.void, first: Stamp, last: Stamp) -> None:
    """The wait of 200 ms is in one stage, and nothing like it in any other."""
    lengths = stages(record)
    assert lengths.pop((first, last)) >= WAIT_NS
    assert max(lengths.values()) < SMALL_NS, lengths


def test_a_reader_that_comes_late_waits_between_queued_and_read_only(
    lab: Lab, meter: Meter
) -> None:
    pair = lab.connect()

    def serve_late() -> None:
        for _ in range(2):
            wait_until(lambda: unread_bytes(pair.server) == len(REQUEST), "a request is queued")
            time.sleep(WAIT_NS / 1e9)
            serve(pair, 1)

    with Worker(serve_late):
        for _ in range(2):
            pair.client.sendall(REQUEST)
            assert receive(pair.client, len(OK)) == OK
    for record in meter.records(2):
        assert_only_wait(record, Stamp.QUEUED, Stamp.READ)
        # What ended the sleep was a timer, not these bytes.
        assert Stamp.WOKEN not in stamps(record)
        assert Stamp.RUNNING not in stamps(record)


def test_a_handler_that_waits_waits_between_read_and_write_only(lab: Lab, meter: Meter) -> None:
    pair = lab.connect()

    def serve_slowly() -> None:
        assert receive(pair.server, len(REQUEST)) == REQUEST
        time.sleep(WAIT_NS / 1e9)
        pair.server.sendall(OK)

    with Worker(serve_slowly) as worker:
        ask(pair, worker, 1)
    record = meter.record()
    assert list(stamps(record)) == ALL_OF_A_SMALL_REQUEST
    assert_only_wait(record, Stamp.READ, Stamp.WRITE)


def test_a_wake_up_by_another_connection_is_not_put_down_to_this_one(
    lab: Lab, meter: Meter
) -> None:
    one, other = lab.connect(), lab.connect()

    def serve_both() -> None:
        assert receive(one.server, len(REQUEST)) == REQUEST
        serve(other, 1)
        one.server.sendall(OK)

    with Worker(serve_both) as worker:
        other.send_segment(REQUEST)
        ask(one, worker, 1)
        assert receive(other.client, len(OK)) == OK
    records = {int(record["peer_port"]): record for record in meter.records(2)}
    first, second = records[one.peer_port], records[other.peer_port]
    assert list(stamps(first)) == ALL_OF_A_SMALL_REQUEST
    assert Stamp.READ in stamps(second)
    assert Stamp.WOKEN not in stamps(second)
    assert Stamp.RUNNING not in stamps(second)


def test_http_server_and_curl_give_a_record_for_each_request_of_theirs(
    lab: Lab, meter: Meter, tmp_path: Path
) -> None:
    (tmp_path / "page").write_bytes(b"x" * 1000)
    command = ["http.server", "--protocol", "HTTP/1.1", "--bind", SERVER_IPV4, str(SPARE_PORT)]
    server = lab.popen(
        "server", sys.executable, "-u", "-m", *command,
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert "Serving HTTP" in server.stdout.readline()
        curl = lab.popen(
            "client", "curl", "--silent", "--show-error", "--output", "/dev/null",
            "--user-agent", "measured", f"http://{SERVER_IPV4}:{SPARE_PORT}/page?[1-23]",
        )  # fmt: skip
        assert curl.wait(20) == 0
        records = meter.records(23)
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()
    assert records["ordinal"].tolist() == list(range(23))
    lines = [b"GET /page?%d HTTP/1.1" % number for number in range(1, 24)]
    assert records["http1"]["request_line"].tolist() == lines
    assert set(records["pid"].tolist()) == {server.pid}
    assert set(records["status"].tolist()) == {200}
    assert set(records["response_body_bytes"].tolist()) == {1000}
    assert set(records["http1"]["user_agent"].tolist()) == {b"measured"}


def test_the_agents_own_connections_are_left_alone(lab: Lab, meter: Meter) -> None:
    meter.let_this_process_be_the_agent()
    try:
        lab.connect().exchange(REQUEST, OK)
        meter.wait_for(Counter.CONNECTIONS_OWN, 1)
    finally:
        meter.let_another_process_be_the_agent()
    assert meter.counted(Counter.SEEN) == 0

# SPDX-License-Identifier: Apache-2.0
"""Upstreams where TC has filters only, and connections to them that are older than the agent."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from lab import CLIENT_INTERFACE, CLIENT_IPV4, Lab, Pair, laboratory, prepare
from messages import OK, request
from meter import GATEWAY_PORT, OUTGOING, UNKNOWN, WHOLE, Meter, flags, load_gateway, stamps
from support.commands import run

from otelbpf.kernel.records import Counter, RequestFlag, Stamp

BY_SOCKET = {Stamp.TCP, Stamp.QUEUED, Stamp.READ}


@pytest.fixture(scope="module")
def by_filters() -> Iterator[Meter]:
    """Not attached yet, and to be attached by clsact."""
    with laboratory() as lab:
        meter = load_gateway(lab, tcx=False)
        try:
            yield meter
        finally:
            lab.close_connections()
            meter.close()


def filters(lab: Lab) -> str:
    """All qdiscs and filters of the client's interface, in tc's words."""
    enter = ("nsenter", f"--net={lab.client_netns.path}", "tc")
    where = ("show", "dev", CLIENT_INTERFACE)
    return run(*enter, "qdisc", *where) + "".join(
        run(*enter, "filter", *where, side) for side in ("ingress", "egress")
    )


def asked_from_outside(lab: Lab) -> Pair:
    """A connection to the gateway."""
    with lab.socket("client", socket.AF_INET) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((CLIENT_IPV4, GATEWAY_PORT))
        listener.listen()
        client = lab.socket("server", socket.AF_INET)
        client.connect((CLIENT_IPV4, GATEWAY_PORT))
        return lab.keep(Pair(client, prepare(listener.accept()[0])))


def test_filters_of_both_roles_side_by_side_and_taken_off(by_filters: Meter) -> None:
    by_filters.begin()
    with by_filters.attached() as description:
        assert f"clsact ingress on {CLIENT_INTERFACE}" in description
        assert filters(by_filters.lab).count("otelbpf-") == 4
        caller, upstream = asked_from_outside(by_filters.lab), by_filters.lab.connect()
        for _ in range(3):
            caller.ask(request())
            upstream.exchange(request(), OK)
            caller.answer(OK)
        records = by_filters.records(6)
        by_filters.end()
    outgoing = [each for each in records if each["flags"] & RequestFlag.CLIENT]
    assert len(outgoing) == 3
    for record in outgoing:
        assert flags(record) == OUTGOING | RequestFlag.CAUSED
        assert BY_SOCKET | {Stamp.NIC, Stamp.TC, Stamp.WRITE, Stamp.TC_OUT} <= set(stamps(record))
    for record in records:
        if not record["flags"] & RequestFlag.CLIENT:
            assert flags(record) == WHOLE
            assert Stamp.ACKED in stamps(record)
    assert "clsact" not in filters(by_filters.lab)


def test_a_connection_older_than_the_agent_is_adopted(by_filters: Meter) -> None:
    by_filters.begin()
    pair = by_filters.lab.connect()
    pair.exchange(request(target="/unseen"), OK)
    with by_filters.attached():
        for _ in range(UNKNOWN):
            pair.exchange(request(target="/unknown"), OK)
        for ordinal in range(UNKNOWN, UNKNOWN + 2):
            pair.exchange(request("POST", "/seen", body=b"body"), OK)
            record = by_filters.record()
            assert record["ordinal"] == ordinal
            assert record["http1"]["request_line"] == b"POST /seen HTTP/1.1"
            assert flags(record) == OUTGOING
            assert record["pid"] > 0
            by_both = {Stamp.NIC, Stamp.TC, Stamp.TC_OUT, Stamp.WRITE}
            assert BY_SOCKET | by_both <= set(stamps(record))
        assert by_filters.counted(Counter.CONNECTIONS_ADOPTED) == 1
        by_filters.end()


def test_adoption_in_the_middle_of_a_response_waits_for_the_next_request(
    by_filters: Meter,
) -> None:
    by_filters.begin()
    pair = by_filters.lab.connect()
    pair.ask(request(target="/unseen"))
    pair.answer(OK[:20])
    with by_filters.attached():
        pair.answer(OK[20:])
        for _ in range(UNKNOWN):
            pair.exchange(request(target="/unknown"), OK)
        assert by_filters.counted(Counter.SEEN) == 0
        pair.exchange(request(target="/next"), OK)
        assert by_filters.record()["http1"]["request_line"] == b"GET /next HTTP/1.1"
        assert by_filters.losses() == {}
        by_filters.end()

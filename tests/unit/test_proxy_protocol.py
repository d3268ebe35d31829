# SPDX-License-Identifier: Apache-2.0
"""What a proxy says before HTTP: read of those alone who may say it, in any segments.

The programs are the real ones, built for this machine with sanitizers. Who judges an address is
Python's ipaddress.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from conversations import Conversation, Turn
from host_programs import HostPrograms, Outcome, build, drawn
from hypothesis import example, given
from hypothesis import strategies as st

from otelbpf.kernel.records import Counter, RequestFlag
from otelbpf.ledger.request import address_of

pytestmark = pytest.mark.impure  # gcc

PROXY, OTHER = "198.51.100.20", "198.51.101.20"
SIGNATURE = b"\r\n\r\n\0\r\nQUIT\n"
GET = b"GET /one HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST /two HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
LINE_MOST = 107
LOCAL, RELAYED = 0x20, 0x21
TCP4, TCP6, UDP4, UNIX, UNSPECIFIED = 0x11, 0x21, 0x12, 0x31, 0x00

_DRAWN = drawn(1_000)


def octets(command: int, family: int, addresses: bytes, more: bytes = b"") -> bytes:
    """A header of version 2."""
    length = len(addresses) + len(more)
    return SIGNATURE + struct.pack("!BBH", command, family, length) + addresses + more


def ends(client: str, port: int = 4711) -> bytes:
    """The client's address, the server's, and their ports, as version 2 has them."""
    packed = ipaddress.ip_address(client).packed
    return packed + bytes(len(packed)) + struct.pack("!HH", port, 80)


@dataclass(frozen=True)
class Told:
    """What a header says: a client, nobody (""), or that the peer is the client (None)."""

    header: bytes
    client: str | None
    port: int = 0


LINES = (
    Told(b"PROXY TCP4 192.0.2.7 192.0.2.2 4711 80\r\n", "192.0.2.7", 4711),
    Told(b"PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", "255.255.255.255", 65_535),
    Told(b"PROXY TCP4 0.0.0.0 1.2.3.4 0 0\r\n", "0.0.0.0"),
    Told(b"PROXY TCP6 2001:db8::7 2001:db8::1 4711 80\r\n", "2001:db8::7", 4711),
    Told(b"PROXY TCP6 ::1 :: 1 2\r\n", "::1", 1),
    Told(b"PROXY TCP6 fe80:: 1::2:3:4:5:6:7 1 2\r\n", "fe80::", 1),
    Told(b"PROXY TCP6 1:2:3:4:5:6:7:8 1:2:3:4:5:6:7:: 1 2\r\n", "1:2:3:4:5:6:7:8", 1),
    Told(b"PROXY TCP6 ::FFFF:192.0.2.7 ::1.2.3.4 1 2\r\n", "192.0.2.7", 1),
    Told(
        b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
        "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", 65_535,
    ),
    Told(b"PROXY UNKNOWN\r\n", ""),
    Told(b"PROXY UNKNOWN ffff::1 whatever 1 2 3\r\n", ""),
    Told(b"PROXY UNKNOWN " + b"x" * (LINE_MOST - 16) + b"\r\n", ""),
)  # fmt: skip
OCTETS = (
    Told(octets(RELAYED, TCP4, ends("192.0.2.7")), "192.0.2.7", 4711),
    Told(octets(RELAYED, TCP6, ends("2001:db8::7")), "2001:db8::7", 4711),
    Told(octets(RELAYED, TCP4, ends("192.0.2.7"), b"\x04\0\x03abc"), "192.0.2.7", 4711),
    Told(octets(RELAYED, TCP6, ends("::7"), b"\r\n\r\nGET / HTTP/1.1\r\n\r\n" * 20), "::7", 4711),
    Told(octets(RELAYED, UDP4, ends("192.0.2.7")), ""),
    Told(octets(RELAYED, UNIX, bytes(216)), ""),
    Told(octets(RELAYED, UNSPECIFIED, b""), ""),
    Told(octets(RELAYED, UNSPECIFIED, b"", b"\x04\0\x00"), ""),
    Told(octets(LOCAL, UNSPECIFIED, b""), None),
    Told(octets(LOCAL, TCP4, ends("192.0.2.7")), None),
    Told(octets(LOCAL, TCP4, b"", b"x" * 300), None),
)
ALL = (*LINES, *OCTETS)
#: No headers, but they begin as some do.
WRONG = (
    b"PROXY TCP4 192.0.2.7 192.0.2.2 4711 80 \r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 4711\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 4711 80\n",
    b"PROXY TCP4 192.0.2.7  192.0.2.2 4711 80\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 65536 80\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 04711 80\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 99999999999 80\r\n",
    b"PROXY TCP4 192.0.2.7 192.0.2.2 -1 80\r\n",
    b"PROXY TCP4 2001:db8::7 2001:db8::1 4711 80\r\n",
    b"PROXY TCP6 192.0.2.7 192.0.2.2 4711 80\r\n",
    b"PROXY TCP5 192.0.2.7 192.0.2.2 4711 80\r\n",
    b"PROXY  TCP4 192.0.2.7 192.0.2.2 4711 80\r\n",
    b"PROXY UNKNOWNS\r\n",
    b"PROXY TCP4\r\n",
    b"PROXY \r\n",
    b"PROXY UNKNOWN " + b"x" * (LINE_MOST - 15) + b"\r\n",
    b"PROXY TCP4 " + b"1" * 500,
    b"\r\n\r\n\0\r\nQUIT\r" + bytes(20),
    SIGNATURE + b"\x11\x11\0\x0c" + ends("192.0.2.7"),
    SIGNATURE + b"\x22\x11\0\x0c" + ends("192.0.2.7"),
    octets(RELAYED, TCP4, ends("192.0.2.7")[:-1]),
    octets(RELAYED, TCP6, ends("192.0.2.7")),
)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostPrograms]:
    programs = HostPrograms(build(tmp_path_factory.mktemp("host")))
    yield programs
    programs.close()


def talk_of(asked: bytes, client: str = PROXY) -> Conversation:
    """Two requests, one after the other, on a connection that begins so."""
    turns = (Turn(True, asked), Turn(False, OK), Turn(True, POST), Turn(False, OK))
    return Conversation(turns, client=client, closed=True)


def told_by(record: np.void) -> tuple[str | None, int]:
    """As Told has it."""
    if not record["client_told"]:
        return None, 0
    raw = record["client_address"].tobytes()
    return address_of(raw) if any(raw) else "", int(record["client_port"])


def check_both(outcome: Outcome, client: str | None, port: int, *, of_client: bool = False) -> None:
    """Both requests are told as if nothing had come before them, but for whose they are."""
    records = outcome.records
    lines = [bytes(line) for line in records["http1"]["request_line"]]
    assert [line[: len(b"POST /two")].strip() for line in lines] == [b"GET /one", b"POST /two"]
    assert records["request_bytes"].tolist() == [len(GET), len(POST)]
    assert records["status"].tolist() == [200, 200]
    whole = RequestFlag.REQUEST_RECEIVED | RequestFlag.REQUEST_ANSWERED
    assert [int(flags) & whole for flags in records["flags"]] == [whole] * 2
    expected = (None, 0) if of_client else (client, port)
    assert [told_by(record) for record in records] == [expected] * 2
    assert outcome.lost == 0
    assert Counter.CONNECTIONS_NOT_HTTP not in outcome.counts


def check_nothing(outcome: Outcome) -> None:
    """No request is told of a connection that begins so, and it is counted as none of HTTP/1."""
    assert len(outcome.records) == 0
    assert outcome.counts.get(Counter.SEEN, 0) == outcome.lost
    assert outcome.counts[Counter.CONNECTIONS_NOT_HTTP] == 1


@pytest.mark.parametrize("told", ALL, ids=lambda told: repr(told.header[:40]))
@pytest.mark.parametrize("of_client", [False, True], ids=["server", "client"])
def test_a_header_in_any_two_segments(programs: HostPrograms, told: Told, of_client: bool) -> None:
    talk = replace(talk_of(told.header + GET), of_client=of_client)
    forms = [talk, talk.byte_by_byte()]
    forms += [talk.cut_at(at, by_client=True) for at in range(1, len(told.header) + 8)]
    for form in forms:
        check_both(programs.play(form), told.client, told.port, of_client=of_client)


def test_one_that_is_as_long_as_can_be(programs: HostPrograms) -> None:
    header = octets(RELAYED, TCP4, ends("192.0.2.7"), b"x" * (65_535 - 12))
    assert len(header) == 16 + 65_535
    segments = [(at, min(at + 1_400, len(header))) for at in range(0, len(header), 1_400)]
    alone = Turn(True, header, tuple(segments))
    rest = talk_of(GET)
    talk = replace(rest, turns=(alone, *rest.turns))
    check_both(programs.play(talk), "192.0.2.7", 4711)
    joined = (*segments[:-1], (segments[-1][0], len(header) + len(GET)))
    first = Turn(True, header + GET, joined)
    check_both(programs.play(replace(rest, turns=(first, *rest.turns[1:]))), "192.0.2.7", 4711)


@pytest.mark.parametrize("told", [LINES[0], OCTETS[2]], ids=["line", "octets"])
def test_segments_that_come_out_of_order(programs: HostPrograms, told: Told) -> None:
    whole = told.header + GET
    for at in range(1, len(whole)):
        for order in (
            ((at, len(whole)), (0, at)),
            ((at, len(whole)), (at, len(whole)), (0, at), (0, at)),
            ((0, at), (at, len(whole)), (0, len(whole))),
        ):
            talk = talk_of(whole)
            turns = (Turn(True, whole, order), *talk.turns[1:])
            check_both(programs.play(replace(talk, turns=turns)), told.client, told.port)


def test_requests_right_behind_it(programs: HostPrograms) -> None:
    talk = Conversation(
        (Turn(True, LINES[0].header + GET + POST), Turn(False, OK + OK)), client=PROXY, closed=True
    )
    check_both(programs.play(talk), "192.0.2.7", 4711)


@pytest.mark.parametrize("header", WRONG, ids=lambda header: repr(header[-40:]))
def test_what_is_no_header_is_read_no_further(programs: HostPrograms, header: bytes) -> None:
    talk = talk_of(header + GET)
    forms = [talk, *(talk.cut_at(at, by_client=True) for at in range(6, len(header)))]
    for form in forms:
        check_nothing(programs.play(form))


@pytest.mark.parametrize("told", ALL, ids=lambda told: repr(told.header[:40]))
def test_of_nobody_else_it_is_read(programs: HostPrograms, told: Told) -> None:
    check_nothing(programs.play(talk_of(told.header + GET, OTHER)))


@pytest.mark.parametrize("told", [LINES[0], OCTETS[0]], ids=["line", "octets"])
def test_only_a_connections_first_bytes_are_one(programs: HostPrograms, told: Told) -> None:
    """Neither a second one, nor one behind an empty line or a request."""
    for before in (told.header, b"\r\n", b"\r\n\r\n", b"\n"):
        check_nothing(programs.play(talk_of(before + told.header + GET)))
    outcome = programs.play(talk_of(GET + told.header))
    assert [told_by(record) for record in outcome.records] == [(None, 0)]


@pytest.mark.parametrize("blanks", [b"\r\n", b"\r\n\r\n", b"\r\n\r\n\r\n", b"\n\r\n"])
def test_empty_lines_before_a_request_stay_that(programs: HostPrograms, blanks: bytes) -> None:
    talk = talk_of(blanks + GET)
    forms = [talk, talk.byte_by_byte()]
    forms += [talk.cut_at(at, by_client=True) for at in range(1, len(blanks) + 3)]
    for form in forms:
        check_both(programs.play(form), None, 0)


def test_a_proxy_need_not_send_one(programs: HostPrograms) -> None:
    check_both(programs.play(talk_of(GET)), None, 0)
    proxied = b"PROXY /one HTTP/1.1\r\n\r\n"
    outcome = programs.play(talk_of(proxied, OTHER))
    assert bytes(outcome.records["http1"]["request_line"][0]).startswith(b"PROXY /one HTTP/1.1")
    assert len(outcome.records) == 2


@pytest.mark.parametrize("of_client", [False, True], ids=["server", "client"])
@pytest.mark.parametrize("method", [b"POST", b"PROPFIND"])
def test_a_request_that_begins_like_one_and_is_cut_there_is_lost(
    programs: HostPrograms, method: bytes, of_client: bool
) -> None:
    """And the one behind it is told."""
    talk = replace(talk_of(method + b" /one HTTP/1.1\r\n\r\n"), of_client=of_client)
    assert len(programs.play(talk).records) == 2
    common = 1 if method == b"POST" else 3
    cuts = [(at,) for at in range(1, common + 1)]
    for form in [*(talk.cut_at(*cut, by_client=True) for cut in cuts), talk.byte_by_byte()]:
        outcome = programs.play(form)
        assert (outcome.counts[Counter.LOST_PARSER], outcome.lost) == (1, 1)
        assert outcome.counts[Counter.SEEN] == 2
        (record,) = outcome.records
        assert bytes(record["http1"]["request_line"]).startswith(b"POST /two")
        assert record["request_bytes"] == len(POST)
        assert record["status"] == 200
        assert Counter.CONNECTIONS_NOT_HTTP not in outcome.counts


# ---- addresses, as Python reads them ----

_IPV4 = st.ip_addresses(v=4)
_IPV6 = st.ip_addresses(v=6) | st.builds(
    lambda groups: ipaddress.IPv6Address(b"".join(group.to_bytes(2, "big") for group in groups)),
    st.lists(st.sampled_from((0, 0, 0, 1, 0xFF, 0xFFFF)), min_size=8, max_size=8),
)


def _forms_of(address: ipaddress.IPv6Address) -> list[str]:
    dotted = str(ipaddress.IPv4Address(address.packed[12:]))
    long = address.exploded
    return [
        str(address), str(address).upper(), long, f"{long[:30]}{dotted}",
        f"::ffff:{dotted}", f"::{dotted}", f"1::{dotted}",
    ]  # fmt: skip


_TEXTS = (
    _IPV4.map(str)
    | _IPV6.flatmap(lambda address: st.sampled_from(_forms_of(address)))
    | st.text("0123456789abcdfg.:F", max_size=45)
    | st.lists(st.sampled_from(("0", "1", "ffff", ":", "::", ".", "255", "256")), max_size=14).map(
        "".join
    )
)


def _judged(text: str, family: str) -> str | None:
    """The address, as it is told; None: it is none."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    if found.version != int(family[-1]):
        return None
    return str(getattr(found, "ipv4_mapped", None) or found)


@_DRAWN
@given(st.sampled_from(("TCP4", "TCP6")), _TEXTS, _TEXTS)
@example("TCP6", ":1::", "::")
@example("TCP6", "1::2::3", "::")
@example("TCP6", ":", "::")
@example("TCP6", ":::", "::")
@example("TCP6", "1:2:3:4:5:6:7::8", "::")
@example("TCP6", "::1:2:3:4:5:6:7:8", "::")
@example("TCP6", "1:2:3:4:5:6:7:", "::")
@example("TCP6", "1:2:3:4:5:6:7:1.2.3.4", "::")
@example("TCP6", "1:2:3:4:5:6:1.2.3.4", "::")
@example("TCP6", "::1.2.3.4:5", "::")
@example("TCP6", "::1.2.3", "::")
@example("TCP6", "::1.2.3.4.5", "::")
@example("TCP6", "::a.2.3.4", "::")
@example("TCP4", "1.2.3.4.5", "1.2.3.4")
@example("TCP4", "1.2.3.4", "1.2.3.")
@example("TCP4", "01.2.3.4", "1.2.3.4")
def test_addresses_are_read_as_others_read_them(
    programs: HostPrograms, family: str, client: str, server: str
) -> None:
    header = f"PROXY {family} {client} {server} 4711 80\r\n".encode()
    expected = None if _judged(server, family) is None else _judged(client, family)
    outcome = programs.play(talk_of(header + GET))
    if expected is None or len(header) > LINE_MOST:
        check_nothing(outcome)
    else:
        # The address of nobody is nobody's.
        check_both(outcome, "" if expected == "::" else expected, 4711)


@_DRAWN
@given(st.binary(max_size=60) | st.sampled_from(ALL).map(lambda told: told.header), st.data())
def test_whatever_comes_no_client_is_told_but_by_a_header(
    programs: HostPrograms, start: bytes, data: st.DataObject
) -> None:
    spoiled = bytearray(start)
    for _ in range(data.draw(st.integers(0, 3))):
        if spoiled:
            spoiled[data.draw(st.integers(0, len(spoiled) - 1))] = data.draw(st.integers(0, 255))
    asked = bytes(spoiled) + GET
    talk = talk_of(asked)
    for form in (talk, talk.byte_by_byte()):
        for record in programs.play(form).records:
            if record["client_told"]:
                assert re.match(rb"PROXY (TCP[46]|UNKNOWN)|\r\n\r\n\0\r\nQUIT\n\x21", asked)

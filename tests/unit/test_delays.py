# SPDX-License-Identifier: Apache-2.0
"""bench/truth: packets by byte, what was injected, and a page that has all scenarios."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from delays import actor, capture
from delays.__main__ import BEGIN, END, PAGE
from delays.actor import Plan, Step
from delays.experiment import WARM, delays
from delays.scenarios import SCENARIOS, Scenario
from delays.scenarios import End as Who

SYN, ACK = 2, 16
US, THEM = 8080, 40000
#: So that sequence numbers wrap.
FIRST = (1 << 32) - 3


def frame(source: int, destination: int, seq: int, ack: int, flags: int, payload: int) -> bytes:
    """Ethernet, IPv4 and TCP headers; the payload is left out, as a short snapshot does."""
    tcp = struct.pack("!HHIIBBHHH", source, destination, seq % (1 << 32), ack % (1 << 32), 5 << 4,
                      flags, 0, 0, 0)  # fmt: skip
    ip = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40 + payload, 0, 0, 64, 6, 0, bytes(4), bytes(4))
    return bytes(12) + b"\x08\x00" + ip + tcp


def pcap(directory: Path, *frames: bytes, magic: int = 0xA1B23C4D) -> Path:
    """A file of tcpdump's, one packet each nanosecond from 1 s on."""
    data = struct.pack("=IHHiIII", magic, 2, 4, 0, 0, 128, 1)
    for at, each in enumerate(frames):
        data += struct.pack("=IIII", 1, at, len(each), len(each)) + each
    path = directory / "packets.pcap"
    path.write_bytes(data)
    return path


def test_a_byte_is_found_in_the_packet_that_had_it_first(tmp_path: Path) -> None:
    seen = capture.read(pcap(
        tmp_path,
        frame(THEM, US, FIRST - 1, 0, SYN, 0),
        frame(US, THEM, 500, FIRST, SYN | ACK, 0),
        frame(THEM, US, FIRST, 501, ACK, 10),
        bytes(12) + b"\x08\x06" + bytes(28),  # ARP
        frame(THEM, US, FIRST + 10, 501, ACK, 5),
        frame(THEM, US, FIRST, 501, ACK, 10),  # again
        frame(US, THEM, 501, FIRST + 10, ACK, 7),
        frame(US, THEM, 508, FIRST + 15, ACK, 0),
    ))  # fmt: skip
    asked, answered = seen.way(THEM, US), seen.way(US, THEM)
    first = 1_000_000_000
    assert [asked.passed_unix_ns(position) - first for position in (0, 9, 10, 14)] == [2, 2, 4, 4]
    assert [asked.acknowledged_unix_ns(position) - first for position in (1, 10, 11, 15)] == [
        6, 6, 7, 7,
    ]  # fmt: skip
    assert answered.passed_unix_ns(6) - first == 6
    with pytest.raises(LookupError, match="byte 15"):
        asked.passed_unix_ns(15)
    with pytest.raises(LookupError, match="byte 7"):
        answered.acknowledged_unix_ns(7)
    with pytest.raises(LookupError, match="no connection"):
        seen.way(THEM, US + 1)


def test_a_file_without_nanoseconds_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nanoseconds"):
        capture.read(pcap(tmp_path, magic=0xA1B2C3D4))


def test_messages_are_as_long_as_they_are_to_be() -> None:
    for size in (100, 400, 60_000):
        for message in (actor.request("/truth/hog", 9, size), actor.request("/", 12_345, size),
                        actor.response(size)):  # fmt: skip
            head, _, body = message.partition(b"\r\n\r\n")
            assert len(message) == size
            assert int(head.rpartition(b"Content-Length: ")[2]) == len(body)


def test_each_delay_is_after_two_requests_without_one() -> None:
    assert delays(3, 10, 30)[WARM:] == (0, 0, 10, 0, 0, 20, 0, 0, 30, 0)
    assert delays(1, 10, 30)[WARM:] == (0, 0, 10, 0)
    assert not any(delays(3, 10, 30)[:WARM])


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
def test_what_was_injected_lies_between_steps_that_are_taken(scenario: Scenario) -> None:
    steps = {Who.SUBJECT: scenario.subject, Who.PEER: scenario.peer}
    # The Nth step of whom it may be begins at N s and takes 1 ms.
    taken = {end: {step: [(n * 10**9, n * 10**9 + 10**6)] for n, step in enumerate(own)}
             for end, own in steps.items()}  # fmt: skip
    assert isinstance(scenario.injected_ns(taken, 0), int)
    for own in steps.values():
        assert len(set(own)) == len(own)
    assert sum(own.count(Step.SLEEP) for own in steps.values()) == 1
    plan = Plan(True, "198.18.0.1", 1, scenario.peer, "/", 1, 2, 3, 4, (5, 6), 0)
    assert Plan.from_json(plan.to_json()).steps == scenario.peer


def test_without_xdp_stages_begin_at_traffic_control() -> None:
    stages = {each.name: each.stages_with(xdp=False) for each in SCENARIOS}
    assert stages["slow-upstream"] == ("tc_out_to_tc",)
    assert stages["late-rest"] == ("read_to_tc_last",)
    assert stages["handler"] == ("read_to_write",)


def test_the_page_has_every_scenario_with_xdp_and_without() -> None:
    """Else bench/truth --write is due."""
    _, begin, rest = PAGE.read_text().partition(BEGIN)
    written, end, _ = rest.partition(END)
    assert begin and end
    rows = [line.split(" | ")[:2] for line in written.splitlines() if line.startswith("| ")]
    for scenario in SCENARIOS:
        assert rows.count([f"| {scenario.kind}", scenario.what]) == 3, scenario.name

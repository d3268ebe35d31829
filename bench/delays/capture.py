# SPDX-License-Identifier: Apache-2.0
"""What tcpdump saw: when a connection's bytes passed the interface."""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from demo.processes import running
from support.namespaces import Side

_READY_S = 30.0
_NANOSECONDS = 0xA1B23C4D
_HEADER, _PACKET = struct.Struct("=IHHiIII"), struct.Struct("=IIII")
_ETHERNET_BYTES, _IPV4, _HEADERS_MOST = 14, 0x0800, 128
_SYN, _ACK = 2, 16
_SEQUENCE_NUMBERS = 1 << 32


class Packet(NamedTuple):
    """A TCP segment on the interface.

    Attributes:
        payload: how many bytes it carried.
    """

    unix_ns: int
    source_port: int
    destination_port: int
    flags: int
    seq: int
    ack: int
    payload: int


@dataclass(frozen=True)
class Way:
    """One direction of a connection.

    Attributes:
        packets: all of the connection, of both directions.
        first_seq: that of its first byte.
        source_port: whence it goes.
    """

    packets: tuple[Packet, ...]
    first_seq: int
    source_port: int

    def passed_unix_ns(self, position: int) -> int:
        """When the byte at this position, from 0 on, passed for the first time."""
        for each in self.packets:
            if each.source_port == self.source_port and not each.flags & _SYN:
                before = (position + self.first_seq - each.seq) % _SEQUENCE_NUMBERS
                if before < each.payload:
                    return each.unix_ns
        raise LookupError(f"tcpdump saw no packet with byte {position} from {self.source_port}")

    def acknowledged_unix_ns(self, position: int) -> int:
        """When a packet of the other direction told that all bytes before this one had come."""
        for each in self.packets:
            if each.source_port != self.source_port and each.flags & _ACK:
                behind = (each.ack - self.first_seq - position) % _SEQUENCE_NUMBERS
                if behind < _SEQUENCE_NUMBERS // 2:
                    return each.unix_ns
        raise LookupError(f"tcpdump saw nobody acknowledge byte {position} from {self.source_port}")


class Capture:
    """Packets by connection."""

    def __init__(self, packets: Iterator[Packet]) -> None:
        self._connections: dict[frozenset[int], list[Packet]] = {}
        for packet in packets:
            ports = frozenset((packet.source_port, packet.destination_port))
            self._connections.setdefault(ports, []).append(packet)

    def way(self, source_port: int, destination_port: int) -> Way:
        """The bytes from one port to the other.

        Raises:
            LookupError: tcpdump did not see them begin.
        """
        packets = self._connections.get(frozenset((source_port, destination_port)), [])
        for packet in packets:
            if packet.source_port == source_port and packet.flags & _SYN:
                return Way(tuple(packets), packet.seq + 1, source_port)
        raise LookupError(f"tcpdump saw no connection between {source_port} and {destination_port}")


def read(path: Path) -> Capture:
    """Reads what tcpdump wrote.

    Raises:
        ValueError: it is something else.
    Source:
        pcap-savefile(5).
    """
    return Capture(_packets(path.read_bytes()))


def _packets(data: bytes) -> Iterator[Packet]:
    if _HEADER.unpack_from(data)[0] != _NANOSECONDS:
        raise ValueError("tcpdump wrote no file with nanoseconds")
    at = _HEADER.size
    while at < len(data):
        seconds, nanoseconds, captured, _ = _PACKET.unpack_from(data, at)
        at += _PACKET.size
        frame = data[at : at + captured]
        at += captured
        (protocol,) = struct.unpack_from("!H", frame, 12)
        if protocol != _IPV4:
            continue
        ip = frame[_ETHERNET_BYTES:]
        ip_bytes = (ip[0] & 15) * 4
        (total,) = struct.unpack_from("!H", ip, 2)
        source, destination, seq, ack, offset, flags = struct.unpack_from("!HHIIBB", ip, ip_bytes)
        yield Packet(
            seconds * 1_000_000_000 + nanoseconds,
            source,
            destination,
            flags,
            seq,
            ack,
            total - ip_bytes - (offset >> 4) * 4,
        )


@contextlib.contextmanager
def tcpdump(side: Side, directory: Path, expression: str) -> Iterator[Path]:
    """Runs tcpdump on an interface; gives its file, which is whole after the block.

    Raises:
        RuntimeError: it lost packets.
    """
    path = directory / "packets.pcap"
    command = [
        *side.enter(),
        "tcpdump",
        "--interface",
        side.interface,
        "-nn",
        "-w",
        path,
        "-U",
        "--immediate-mode",
        "-Z",
        "root",
        "--time-stamp-precision=nano",
        f"--snapshot-length={_HEADERS_MOST}",
        expression,
    ]
    with running("tcpdump", command, directory) as process:
        process.wait_until(lambda each: "listening on" in each.stderr.read_text(), _READY_S)
        yield path
    said = process.stderr.read_text()
    dropped = re.search(r"(\d+) packets dropped by kernel", said)
    if not dropped or int(dropped[1]):
        raise RuntimeError(f"tcpdump lost packets{process.said()}")

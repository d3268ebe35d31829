# SPDX-License-Identifier: Apache-2.0
"""For whom the packets of a connection came in, by the kernel's table of connections."""

from __future__ import annotations

from otelbpf.host.conntrack import find, find_led_elsewhere

PEER, LOCAL = ("198.18.0.2", 4444), ("198.18.0.1", 8080)
PEER6, LOCAL6 = ("fd00::2", 4444), ("fd00::1", 8080)
TABLE = [
    "ipv4     2 udp      17 25 src=198.18.0.2 dst=198.18.0.1 sport=4444 dport=53 "
    "src=198.18.0.1 dst=198.18.0.2 sport=53 dport=4444 mark=0 use=2\n",
    "ipv4     2 icmp     1 9 src=198.18.0.2 dst=198.18.0.1 type=8 code=0 id=1 "
    "src=198.18.0.1 dst=198.18.0.2 type=0 code=0 id=1 mark=0 use=2\n",
    # Another one's, between the same ports.
    "ipv4     2 tcp      6 431999 ESTABLISHED src=198.18.0.9 dst=198.18.0.1 sport=4444 dport=81 "
    "src=198.18.0.1 dst=198.18.0.9 sport=8080 dport=4444 [ASSURED] mark=0 use=2\n",
    "ipv4     2 tcp      6 431999 ESTABLISHED src=198.18.0.2 dst=203.0.113.1 sport=4444 dport=80 "
    "packets=3 bytes=99 src=198.18.0.1 dst=198.18.0.2 sport=8080 dport=4444 packets=2 bytes=88 "
    "[ASSURED] mark=0 zone=1 use=2\n",
    "ipv6     10 tcp      6 431999 ESTABLISHED "
    "src=fd00:0000:0000:0000:0000:0000:0000:0002 dst=fd00:0000:0000:0000:0000:0000:0000:0001 "
    "sport=4444 dport=443 "
    "src=fd00:0000:0000:0000:0000:0000:0000:0001 dst=fd00:0000:0000:0000:0000:0000:0000:0002 "
    "sport=8080 dport=4444 [ASSURED] mark=0 use=2\n",
    "ipv4     2 tcp      6 431999 ESTABLISHED src=198.18.0.2 dst=203.0.113.1 sport=7777 dport=8080 "
    "src=198.18.0.1 dst=198.18.0.2 sport=8080 dport=7777 [ASSURED] mark=0 use=2\n",
    "ipv4     2 tcp      6 431999 ESTABLISHED src=198.18.0.2 dst=198.18.0.1 sport=5555 dport=8080 "
    "src=198.18.0.1 dst=198.18.0.2 sport=8080 dport=5555 [ASSURED] mark=0 use=2\n",
]


ON_THE_WIRE = {
    (PEER, LOCAL): ("203.0.113.1", 80),
    (PEER6, LOCAL6): ("fd00::1", 443),
    (("198.18.0.9", 4444), LOCAL): ("198.18.0.1", 81),
    (("198.18.0.2", 7777), LOCAL): ("203.0.113.1", 8080),
}
NOT_TOLD = [
    (("198.18.0.2", 5555), LOCAL),  # it came for the socket's own
    (("198.18.0.2", 6666), LOCAL),  # it is not known
    (PEER, ("198.18.0.1", 53)),  # not of TCP
    (("198.18.0.8", 4444), LOCAL),  # another one's ports
]


def test_the_end_on_the_wire() -> None:
    assert find(TABLE, [*ON_THE_WIRE, *NOT_TOLD]) == ON_THE_WIRE
    for connection, wire in ON_THE_WIRE.items():
        assert find(TABLE, [connection]) == {connection: wire}
    assert find(TABLE, []) == {}


def test_ports_from_which_connections_are_led_elsewhere() -> None:
    """To another port, or to the same one at another address."""
    assert find_led_elsewhere(TABLE, [80, 81, 443, 8080, 53, 22]) == {80, 81, 443, 8080}
    assert find_led_elsewhere(TABLE, [80, 22]) == {80}
    assert find_led_elsewhere(TABLE, []) == set()
    to_the_socket_itself = TABLE[-1:]
    assert find_led_elsewhere(to_the_socket_itself, [8080]) == set()

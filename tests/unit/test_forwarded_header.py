# SPDX-License-Identifier: Apache-2.0
"""For whom proxies say that they have forwarded a request, and who the client is by that."""

from __future__ import annotations

import ipaddress
import re
import string

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from samples import CLIENT_TOLD, address, record

from otelbpf.kernel.records import FORWARDED_TEXT, RequestFlag
from otelbpf.ledger.forwarded import Clients
from otelbpf.ledger.request import address_of
from otelbpf.policy.proxies import Forwarding, Header, network
from otelbpf.protocols.forwarded import forwarded, x_forwarded_for

NETWORKS = tuple(map(network, ("10.0.0.0/8", "2001:db8:1::/48", "192.0.2.7")))
READ = {Header.X_FORWARDED_FOR: x_forwarded_for, Header.FORWARDED: forwarded}
XFF, RFC = Header.X_FORWARDED_FOR, Header.FORWARDED
NOBODY = ("::", 0)
MOST = FORWARDED_TEXT["text"].itemsize


def told(header: Header, text: str, *, is_cut: bool = False) -> list[str | None]:
    """From the right: `address port`, without the port where none is told; None: not told."""
    return [
        node and f"{address_of(node.address)} {node.port or ''}".strip()
        for node in READ[header](text, is_cut=is_cut)
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # The examples of RFC 7239.
        ('for="_gazonk"', [None]),
        ('For="[2001:db8:cafe::17]:4711"', ["2001:db8:cafe::17 4711"]),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", ["192.0.2.60"]),
        ("for=192.0.2.43, for=198.51.100.17", ["198.51.100.17", "192.0.2.43"]),
        ('for=192.0.2.43,for="[2001:db8:cafe::17]",for=unknown', [None]),
        ('for=192.0.2.43, for="[2001:db8:cafe::17]"', ["2001:db8:cafe::17", "192.0.2.43"]),
        ("for=_hidden, for=_SEVKISEK", [None]),
        ('for="192.0.2.43:47011"', ["192.0.2.43 47011"]),
        ('for="[2001:db8:cafe::17]:_port"', ["2001:db8:cafe::17"]),
        ("for=unknown", [None]),
        # What else it allows.
        ('FOR="192.0.2.1";Host="a,b;for=9.9.9.9"', ["192.0.2.1"]),
        ('host="\\"a\\\\";for=192.0.2.1, for=192.0.2.2', ["192.0.2.2", "192.0.2.1"]),
        ('for="\\1\\92.0.2.1"', ["192.0.2.1"]),
        (", for=192.0.2.1 ,, ", ["192.0.2.1"]),
        ("for=192.0.2.1;;proto=https;", ["192.0.2.1"]),
        # What it does not, and is as clear.
        ("for=192.0.2.1:80 ; by=_x", ["192.0.2.1 80"]),
        ("for=[::1]:80", ["::1 80"]),
        # What is not.
        ("", []),
        ("192.0.2.1", [None]),
        ("by=192.0.2.1", [None]),
        ("for=192.0.2.1;for=192.0.2.2", [None]),
        ("for=192.0.2.1;FOR=192.0.2.1", [None]),
        ('for="2001:db8::1"', [None]),
        ("for=", [None]),
        ('for=""', [None]),
        ('for="192.0.2.1', [None]),
        ('for=192.0.2.1"', [None]),
        ("for = 192.0.2.1", [None]),
        ("for=192.0.2.1 192.0.2.2", [None]),
        ("for=192.0.2.1:65536", [None]),
        ("for=192.0.2.1:", [None]),
        ("for=192.0.2.01", [None]),
        # Whatever is at the left, it changes nothing at the right.
        ('for="evil, for=192.0.2.1', ["192.0.2.1", None]),
        ('for="evil, for="[2001:db8::1]"', ["2001:db8::1", None]),
        ('x="\\, for=192.0.2.2;by="192.0.2.3"', ["192.0.2.2", None]),
    ],
)
def test_forwarded(text: str, expected: list[str | None]) -> None:
    assert told(RFC, text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", ["192.0.2.1"]),
        ("192.0.2.1, 2001:db8::1,192.0.2.2", ["192.0.2.2", "2001:db8::1", "192.0.2.1"]),
        ("192.0.2.1:4711", ["192.0.2.1 4711"]),
        ("[2001:db8::1]:4711,[2001:db8::2]", ["2001:db8::2", "2001:db8::1 4711"]),
        ("::ffff:192.0.2.1", ["192.0.2.1"]),
        (" \t, ,192.0.2.1, ", ["192.0.2.1"]),
        ("2001:db8::1:4711", ["2001:db8::1:4711"]),  # nothing says that this is a port
        ("", []),
        ("unknown, 192.0.2.1", ["192.0.2.1", None]),
        ("a.example", [None]),
        ("192.0.2", [None]),
        ("192.0.2.256", [None]),
        ("0x7f.0.0.1", [None]),
        ("192.0.2.1:", [None]),
        ("192.0.2.1:x", [None]),
        ("192.0.2.1:123456", [None]),
        ("[2001:db8::1", [None]),
        ("[2001:db8::1]4711", [None]),
        ("[192.0.2.1]:80", [None]),
        ("fe80::1%eth0", [None]),
        ('"192.0.2.1"', [None]),
        ("192.0.2.1 192.0.2.2", [None]),
        ("192.0.2.1\0", [None]),
        ("192.0.2.\xb9", [None]),
        ("for=192.0.2.1", [None]),
    ],
)
def test_x_forwarded_for(text: str, expected: list[str | None]) -> None:
    assert told(XFF, text) == expected


def test_what_is_cut_is_not_told() -> None:
    assert told(XFF, "2.0.2.1, 192.0.2.2", is_cut=True) == ["192.0.2.2", None]
    assert told(XFF, ",192.0.2.2", is_cut=True) == ["192.0.2.2", None]
    assert told(XFF, "", is_cut=True) == [None]
    assert told(RFC, 'or=192.0.2.1, for="[::1]"', is_cut=True) == ["::1", None]
    assert told(RFC, 'evil", for=192.0.2.2', is_cut=True) == ["192.0.2.2", None]


# ---- round trips, and a simple judge ----

_NODES = st.tuples(st.ip_addresses(), st.none() | st.integers(1, 65_535))
_TOKENS = st.text(string.ascii_letters + string.digits + "!#$%&'*+.^_`|~-", min_size=1, max_size=9)
_OTHERS = st.tuples(
    _TOKENS.filter(lambda name: name.lower() != "for"),
    st.text(string.printable[:95], max_size=12),
)


def _written(node: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int | None]) -> str:
    of, port = node
    host = str(of) if of.version == 4 else f"[{of}]"
    return host if port is None else f"{host}:{port}"


def _expected(node: tuple[ipaddress.IPv4Address | ipaddress.IPv6Address, int | None]) -> str:
    return f"{address_of(address(str(node[0])))} {node[1] or ''}".strip()


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


@given(st.lists(st.tuples(_NODES, st.lists(_OTHERS, max_size=3), st.integers(0, 3)), max_size=6))
def test_what_is_written_is_read(elements: list) -> None:  # type: ignore[type-arg]
    texts = []
    for node, others, place in elements:
        pairs = [f"{name}={_quoted(value)}" for name, value in others]
        pairs.insert(place, f"fOr={_quoted(_written(node))}")
        texts.append(";".join(pairs))
    expected = [_expected(node) for node, _, _ in reversed(elements)]
    assert told(RFC, ", ".join(texts)) == expected
    assert told(XFF, ", ".join(_written(node) for node, _, _ in elements)) == expected


@given(
    st.text(max_size=60) | st.text('for=";, \\1.2', max_size=60),
    st.sampled_from(
        ("for=198.51.100.1", 'by=x;for="[2001:db8::9]:1"', 'for=198.51.100.2;x="a,\\""')
    ),
)
@example('for="', 'by=x;for="[2001:db8::9]:1"')
@example('x="\\', 'for=198.51.100.2;x="a,\\""')
def test_nobody_changes_what_is_written_behind(before: str, last: str) -> None:
    (alone,) = told(RFC, last)
    assert told(RFC, f"{before}, {last}")[0] == alone
    assert told(RFC, f"{before}, {last}", is_cut=True)[0] == alone


@given(st.text("0123456789.:[]abcf,_ ", max_size=40))
def test_addresses_are_read_as_others_read_them(text: str) -> None:
    for found, item in zip(told(XFF, text), reversed(text.split(",")), strict=False):
        if found is None or not item.strip():
            break
        host, _, _ = found.partition(" ")
        bare = item.strip()
        if bare.startswith("["):
            bare = bare[1:].partition("]")[0]
        elif bare.count(":") == 1:
            bare = bare.partition(":")[0]
        assert address(host) == address(bare)


# ---- who the client is ----


def found(
    text: bytes | None,
    *,
    header: Header = XFF,
    is_cut: bool = False,
    is_whole: bool = True,
    **fields: object,
) -> tuple[str, int] | None:
    """Whom the record tells then; None: nobody."""
    fields.setdefault("peer_address", address("10.0.0.1"))
    made = record(connection_id=77, ordinal=3, **fields)
    texts = np.zeros(1, FORWARDED_TEXT)
    if text is None:
        texts[0] = (77, 2, 7, b"9.9.9.9")  # of the request that had the place before
    else:
        # In the ring, behind what has no room there.
        before = 1_000 if is_cut else 0
        octets = (b"x" * before + text)[-MOST:].ljust(MOST, b"\0") if is_cut else text
        begin = (before + len(text)) % MOST if is_cut else 0
        texts[0] = (
            77,
            3,
            before + len(text),
            octets[-begin:] + octets[:-begin] if begin else octets,
        )
    Clients(Forwarding(NETWORKS, header)).tell(made, texts, np.array([is_whole]))
    if not made["client_told"][0]:
        return None
    return address_of(made["client_address"][0].tobytes()), int(made["client_port"][0])


@pytest.mark.parametrize(
    ("text", "client"),
    [
        (b"198.51.100.1", ("198.51.100.1", 0)),
        (b"198.51.100.1:4711", ("198.51.100.1", 4711)),
        (b"203.0.113.9, 198.51.100.1, 10.1.1.1,192.0.2.7", ("198.51.100.1", 0)),
        (b"2001:db8::5, 2001:db8:1::5", ("2001:db8::5", 0)),
        (b"10.0.0.9:5, 10.1.1.1, 192.0.2.7:80", ("10.0.0.9", 5)),
        (b"evil, 198.51.100.1, 10.1.1.1", ("198.51.100.1", 0)),
        (b"198.51.100.1, unknown, 10.1.1.1", NOBODY),
        (b"198.51.100.1, _hidden", NOBODY),
        (b"", None),
        (b" , ", None),
        (None, None),
    ],
)
def test_the_last_one_that_is_no_proxy(text: bytes | None, client: tuple[str, int] | None) -> None:
    assert found(text) == client


def test_in_the_other_header() -> None:
    text = b'for=203.0.113.9, for="[2001:db8::5]:1", for=10.9.9.9;by=10.0.0.1'
    assert found(text, header=RFC) == ("2001:db8::5", 1)
    assert found(b"for=203.0.113.9, for=unknown", header=RFC) == NOBODY


@pytest.mark.parametrize(
    ("fields", "client"),
    [
        ({"peer_address": address("198.51.100.200")}, None),
        ({"peer_address": address("192.0.2.8")}, None),
        ({"peer_address": address("2001:db8:1::9")}, ("203.0.113.9", 0)),
        ({"flags": RequestFlag.CLIENT}, None),
        # By a header of the PROXY protocol it is another one's; or nobody knows whose.
        ({"client_told": CLIENT_TOLD, "client_address": address("10.0.0.5")}, ("203.0.113.9", 0)),
        (
            {
                "client_told": CLIENT_TOLD,
                "client_address": address("198.51.100.3"),
                "client_port": 7,
            },
            ("198.51.100.3", 7),
        ),
        (
            {
                "client_told": CLIENT_TOLD,
                "client_address": address("10.0.0.5"),
                "peer_address": address("198.51.100.3"),
            },
            ("203.0.113.9", 0),
        ),
        ({"client_told": CLIENT_TOLD, "client_address": bytes(16)}, NOBODY),
        # What is not told is what was there before.
        ({"client_told": 0, "client_address": address("198.51.100.3")}, ("203.0.113.9", 0)),
    ],
)
def test_who_is_believed(fields: dict[str, object], client: tuple[str, int] | None) -> None:
    assert found(b"203.0.113.9", **fields) == client


def test_what_may_be_missing_is_not_told() -> None:
    assert found(b"198.51.100.1, 10.1.1.1", is_cut=True) == NOBODY
    assert found(b"8.51.100.1, 198.51.100.2", is_cut=True) == ("198.51.100.2", 0)
    assert found(b"198.51.100.1, ?, 10.1.1.1") == NOBODY
    assert found(b"198.51.100.1, 10.1.1.1," * 11 + b"10.1.1.1", is_cut=True) == ("198.51.100.1", 0)
    assert found(b"10.1.1.1," * 40, is_cut=True) == NOBODY
    assert found(b"198.51.100.1", is_whole=False) == NOBODY
    assert found(None, is_whole=False) == NOBODY


def test_each_request_has_its_own() -> None:
    made = np.concatenate(
        [record(connection_id=1, ordinal=n, peer_address=address(f"{n}.0.0.1")) for n in range(20)]
    )
    texts = np.zeros(20, FORWARDED_TEXT)
    for n in range(20):
        texts[n] = (1, n, 11, f"192.0.2.1{n % 3 + 10}"[:11].encode())
    Clients(Forwarding((network("10.0.0.0/8"), network("16.0.0.0/6")))).tell(
        made, texts, np.ones(20, bool)
    )
    expected = [CLIENT_TOLD if n == 10 or n >= 16 else 0 for n in range(20)]
    assert made["client_told"].tolist() == expected
    for n in np.flatnonzero(made["client_told"]).tolist():
        assert address_of(made["client_address"][n].tobytes()) == texts["text"][n].decode()

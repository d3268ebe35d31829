# SPDX-License-Identifier: Apache-2.0
"""Whose each stage is: every ordered pair of stamps of both roles, written out by hand."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from support.stages import stages_of

from otelbpf.kernel.records import Stamp
from otelbpf.ledger.request import Kind, stage_name
from otelbpf.ledger.stamps import (
    WAY,
    Owner,
    ends_of,
    meaning_of,
    owner_of,
    place_of_stage,
    place_of_stamp,
    shade_of,
)

DOCUMENT = Path(__file__).parents[2] / "docs/stages.md"

# r receive, w waiting, a application, s send, p peer + network, u unknown. A row is a first stamp,
# a column a second one, in the order of the rows; `.` is the stamp itself. Acked, the last column,
# bounded stages in earlier versions only, and then as the second one.
SERVER = """
nic            . r r r w w w p p w a a a a a p r p
tc             p . r r w w w p p w a a a a a p r p
tcp            p p . r w w w p p w a a a a a p r p
queued         p p r . w w w p p w a a a a a p w p
woken          p p r r . w w p p w a a a a a p w p
running        p p r r w . w p p w a a a a a p w p
read           p p r r w w . p p a a a a a a p a p
nic_last       p r r r w w w . r w a a a a a p w p
tc_last        p p r r w w w p . w a a a a a p w p
read_last      p p r r w w w p p . a a a a a p a p
handler_start  p p r r w w w p p a . a a a a p a p
handler_end    p p r r w w w p p a a . a a a p a p
write          p p p p w w w p p a a a . s a p s p
tc_out         p p p p w w w p p a a a a . a p u p
write_last     p p p p w w w p p a a a a s . p p p
tc_out_last    p p p p w w w p p a a a a a a . p p
ended          u u u u u u u u u u u u u u u u . u
"""
CLIENT = """
nic            . r r r w w w p p w a a a a a p p p
tc             p . r r w w w p p w a a a a a p p p
tcp            p p . r w w w p p w a a a a a p p p
queued         p p r . w w w p p w a a a a a p p p
woken          p p r r . w w p p w a a a a a p p p
running        p p r r w . w p p w a a a a a p p p
read           p p r r w w . p p a a a a a a p p p
nic_last       p r r r w w w . r w a a a a a p p p
tc_last        p p r r w w w p . w a a a a a p p p
read_last      p p r r w w w p p . a a a a a p p p
handler_start  p p r r w w w p p a . a a a a p p p
handler_end    p p r r w w w p p a a . a a a p p p
write          p p p p w w w p p a a a . s a p s p
tc_out         p p p p w w w p p a a a a . a p p p
write_last     p p p p w w w p p a a a a s . p p p
tc_out_last    p p p p w w w p p a a a a a a . p p
ended          u u u u u u u u u u u u u u u u . u
"""
MATRICES = {Kind.SERVER: SERVER, Kind.CLIENT: CLIENT}
BOUNDS = [stamp for stamp in Stamp if stamp < Stamp.ACKED]


def golden(kind: Kind) -> dict[str, Owner]:
    """The owner of each stage there can be."""
    owners = {owner[0]: owner for owner in Owner}
    assert len(owners) == len(Owner)
    rows = [line.split() for line in MATRICES[kind].split("\n") if line]
    assert [row[0] for row in rows] == [stamp.name.lower() for stamp in BOUNDS]
    found = {}
    for first, (_, *letters) in zip(BOUNDS, rows, strict=True):
        for second, letter in zip(Stamp, letters, strict=True):
            assert (letter == ".") is (first is second)
            if letter != ".":
                found[stage_name(first, second)] = owners[letter]
    return found


@pytest.mark.parametrize("kind", Kind)
def test_whose_each_stage_is(kind: Kind) -> None:
    told = golden(kind)
    assert len(told) == len(BOUNDS) ** 2
    assert {stage: owner_of(stage, kind) for stage in told} == told


@pytest.mark.parametrize(
    ("stage", "server", "client"),
    [
        # Without XDP traffic control is the first to see what comes: the upstream's time.
        ("tc_out_to_tc", Owner.PEER, Owner.PEER),
        ("tc_out_last_to_tc", Owner.PEER, Owner.PEER),
        ("tc_out_to_nic", Owner.PEER, Owner.PEER),
        ("nic_to_tc", Owner.RECEIVE, Owner.RECEIVE),
        # A body that is slow to come, with XDP and without; and one that is slow to be read.
        ("read_to_nic_last", Owner.PEER, Owner.PEER),
        ("read_to_tc_last", Owner.PEER, Owner.PEER),
        ("nic_last_to_tc_last", Owner.RECEIVE, Owner.RECEIVE),
        ("tc_last_to_read_last", Owner.WAITING, Owner.WAITING),
        ("read_to_read_last", Owner.APPLICATION, Owner.APPLICATION),
        # A slow application, and a slow reader of its answer.
        ("tc_out_to_write_last", Owner.APPLICATION, Owner.APPLICATION),
        ("write_to_tc_out", Owner.SEND, Owner.SEND),
        ("tc_out_to_tc_out_last", Owner.PEER, Owner.PEER),
        ("write_last_to_tc_out_last", Owner.PEER, Owner.PEER),
        # Never answered.
        ("queued_to_ended", Owner.WAITING, Owner.PEER),
        ("read_to_ended", Owner.APPLICATION, Owner.PEER),
        ("tc_out_to_ended", Owner.UNKNOWN, Owner.PEER),
    ],
)
def test_those_that_matter(stage: str, server: Owner, client: Owner) -> None:
    assert (owner_of(stage, Kind.SERVER), owner_of(stage, Kind.CLIENT)) == (server, client)


@pytest.mark.parametrize("kind", Kind)
@pytest.mark.parametrize("stage", ["other", "tc", "nic_to_x", "x_to_read", "read_to_", ""])
def test_what_is_not_known_is_nobodys(stage: str, kind: Kind) -> None:
    """Stages that found no place, a ledger of one stamp, stamps of other versions."""
    assert owner_of(stage, kind) is Owner.UNKNOWN


def test_every_stamp_has_its_place_and_its_meaning() -> None:
    assert WAY[Kind.SERVER] == tuple(Stamp)
    # What a client does first a server does last; a handler, and an acknowledgement, it has none.
    assert set(WAY[Kind.CLIENT]) == set(Stamp) - {
        Stamp.HANDLER_START,
        Stamp.HANDLER_END,
        Stamp.ACKED,
    }
    assert len(set(WAY[Kind.CLIENT])) == len(WAY[Kind.CLIENT])
    assert (WAY[Kind.CLIENT][0], WAY[Kind.CLIENT][-1]) == (Stamp.WRITE, Stamp.ENDED)
    meanings = {meaning_of(stamp.name.lower()) for stamp in Stamp}
    assert len(meanings) == len(Stamp) and "" not in meanings
    assert meaning_of("x") == ""


@pytest.mark.parametrize("kind", Kind)
def test_stamps_along_the_way(kind: Kind) -> None:
    """Those that are not known come last."""
    names = [stamp.name.lower() for stamp in WAY[kind]]
    assert sorted([*reversed(names), "y", "x"], key=lambda name: place_of_stamp(name, kind)) == [
        *names,
        "x",
        "y",
    ]


def test_stages_of_many_requests_are_sorted_by_owner() -> None:
    stages = ["write_to_tc_out", "nic_to_tc", "tc_out_to_tc_out_last", "read_to_write", "other",
              "tc_to_read"]  # fmt: skip
    assert sorted(stages, key=lambda stage: place_of_stage(stage, Kind.SERVER)) == [
        "nic_to_tc",
        "tc_to_read",
        "read_to_write",
        "write_to_tc_out",
        "tc_out_to_tc_out_last",
        "other",
    ]
    client = ["queued_to_read", "tc_out_to_tc", "tc_to_queued", "write_to_tc_out"]
    assert sorted(client, key=lambda stage: place_of_stage(stage, Kind.CLIENT)) == [
        "write_to_tc_out",
        "tc_out_to_tc",
        "tc_to_queued",
        "queued_to_read",
    ]


@pytest.mark.parametrize(
    ("kind", "way"),
    [
        (Kind.SERVER, "nic tc tcp queued woken running read handler_start handler_end write tc_out "
                      "write_last tc_out_last"),
        (Kind.SERVER, "tc tcp queued read tc_last read_last write write_last tc_out tc_out_last"),
        (Kind.SERVER, "nic nic_last tc tcp queued tc_last read read_last ended"),
        (Kind.SERVER, "nic tc tcp queued read nic_last tc_last read_last handler_start ended"),
        (Kind.CLIENT, "write write_last tc_out tc_out_last tc tcp queued woken running read "
                      "tc_last read_last"),
        (Kind.CLIENT, "write tc_out write_last tc_out_last nic tc tcp queued read nic_last tc_last "
                      "read_last"),
        (Kind.CLIENT, "write tc_out tc_out_last ended"),
    ],
)  # fmt: skip
def test_neighbours_of_one_owner_differ_in_shade(kind: Kind, way: str) -> None:
    stages = [f"{first}_to_{second}" for first, second in itertools.pairwise(way.split())]
    for one, other in itertools.pairwise(stages):
        if owner_of(one, kind) is owner_of(other, kind):
            assert shade_of(one) != shade_of(other), (one, other)


def test_every_stages_name_can_be_taken_apart() -> None:
    for first, second in itertools.permutations(BOUNDS, 2):
        if first is Stamp.ENDED:  # there is no stage after it
            continue
        stamps = [0] * len(Stamp)
        stamps[first], stamps[second] = 1, 2
        (stage,) = stages_of(stamps)
        assert ends_of(stage.name) == (first.name.lower(), second.name.lower())
    assert ends_of("tc_out") == ("tc_out", "tc_out")


#: The tables of docs/stages.md, and of whose requests each is.
_TABLES = {
    "A server's stages": (Kind.SERVER,),
    "An upstream's stages": (Kind.CLIENT,),
    "Other orders": tuple(Kind),
    "Requests that were cut short": (Kind.SERVER,),
}


def test_the_documents_tell_the_same() -> None:
    """Whose each stage is that docs/stages.md names in a table."""
    labels = {owner.label: owner for owner in Owner}
    told = {heading: 0 for heading in _TABLES}
    heading = ""
    for line in DOCUMENT.read_text().splitlines():
        if line.startswith("## "):
            heading = line.removeprefix("## ")
        if heading not in _TABLES or not line.startswith("| `"):
            continue
        _, names, owner, *_ = line.split("|")
        label = owner.partition(":")[0].strip()
        for stage in re.findall(r"`([a-z]\w*_to_\w+)`", names) if label in labels else ():
            for kind in _TABLES[heading]:
                assert owner_of(stage, kind) is labels[label], (heading, stage)
                told[heading] += 1
    assert all(told.values()), told


def test_a_peer_is_never_taken_for_the_network_alone() -> None:
    assert Owner.PEER.label == "peer + network"
    assert len({owner.label for owner in Owner}) == len({owner.about for owner in Owner}) == 6

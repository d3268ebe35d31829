# SPDX-License-Identifier: Apache-2.0
"""seen = exported + sampled out + lost, and in flight is what is missing."""

from __future__ import annotations

import json
import threading

import pytest

from otelbpf.kernel.records import Counter
from otelbpf.ledger.tally import Coverage, Gap, Lost, Sums, Tally, not_joined

IN_KERNEL = {
    Counter.LOST_RING_FULL: Lost.RING_FULL,
    Counter.LOST_PIPELINE_FULL: Lost.PIPELINE_FULL,
    Counter.LOST_TABLE_FULL: Lost.TABLE_FULL,
    Counter.LOST_PARSER: Lost.PARSER,
    Counter.LOST_CLOSED: Lost.CLOSED,
    Counter.LOST_EVICTED: Lost.EVICTED,
    Counter.LOST_UNTAKEN: Lost.UNTAKEN,
    Counter.LOST_STOPPED: Lost.STOPPED,
}


def counts(**changed: int) -> dict[Counter, int]:
    return {counter: changed.get(counter.name, 0) for counter in Counter}


def test_every_loss_of_the_kernel_has_its_reason() -> None:
    assert set(IN_KERNEL) == {c for c in Counter if c.name.startswith("LOST_")}
    made = {counter.name: 10 + i for i, counter in enumerate(IN_KERNEL)}
    sums = Tally().sums(counts(**made))
    assert {r: n for r, n in sums.lost.items() if n} == {
        reason: made[counter.name] for counter, reason in IN_KERNEL.items()
    }


def test_both_sides_add_up() -> None:
    tally = Tally()
    tally.export(100)
    tally.export(1)
    tally.sample_out(20)
    tally.lose(Lost.QUEUE_FULL, 3)
    tally.lose(Lost.QUEUE_FULL, 4)
    tally.lose(Lost.EXPORT_FAILED, 5)
    sums = tally.sums(counts(SEEN=150, SUBMITTED=140, LOST_PARSER=6))
    assert (sums.seen, sums.exported, sums.sampled_out) == (150, 101, 20)
    assert {r: n for r, n in sums.lost.items() if n} == {
        Lost.PARSER: 6,
        Lost.QUEUE_FULL: 7,
        Lost.EXPORT_FAILED: 5,
    }
    assert sums.in_flight == 150 - 101 - 20 - 6 - 7 - 5 == 11


def test_what_is_ignored_is_sampled_out_and_told_apart() -> None:
    tally = Tally()
    tally.export(10)
    tally.sample_out(3)
    tally.ignore(4)
    sums = tally.sums(counts(SEEN=20, SAMPLED_OUT=2))
    assert (sums.sampled_out, sums.ignored, sums.in_flight) == (9, 4, 1)
    assert str(sums) == (
        "seen 20 = exported 10 + sampled out 9 (4 by --ignore-route) + lost 0 + in flight 1"
    )


def test_connections_by_their_short_names() -> None:
    sums = Tally().sums(counts(CONNECTIONS_OPENED=3, CONNECTIONS_NOT_HTTP=1, PACKETS_UNPARSED=9))
    assert sums.connections == {
        "opened": 3,
        "adopted": 0,
        "closed": 0,
        "evicted": 0,
        "not_http": 1,
        "own": 0,
        "tls": 0,
        "http2": 0,
        "unseen": 0,
        "crowded": 0,
    }


def test_segments_that_are_left_alone_are_told_by_name() -> None:
    told = counts(SEGMENTS_STRAY=7, SEGMENTS_UNASKED=5, SEGMENTS_UNCERTAIN=3, SEEN=2)
    assert Tally().sums(told).segments == {"stray": 7, "unasked": 5, "uncertain": 3}


def test_joins_are_told_by_name() -> None:
    sums = Tally().sums(counts(MARKS_JOINED=4, MARKS_AMBIGUOUS=2, CAUSES_AMBIGUOUS=1))
    assert sums.joins == {
        "marks_joined": 4, "marks_unknown": 0, "marks_ambiguous": 2, "causes_ambiguous": 1,
    }  # fmt: skip


def test_what_was_not_joined_is_told() -> None:
    """One in the singular, with what is known of why."""
    joins = {"marks_joined": 4, "marks_unknown": 1, "marks_ambiguous": 0, "causes_ambiguous": 1_200}
    assert not_joined(joins) == [
        "1 span of an application has no request's span above it: not of a request in flight, or "
        "not of the trace that it carries",
        "1,200 requests to upstreams start traces of their own: which request it was for is not "
        "known, as a thread may have several in hand where it does not wait for each one's bytes",
    ]
    assert not_joined({"causes_ambiguous": 1})[0].startswith("1 request to an upstream starts a ")
    assert not_joined({}) == []


def test_sums_do_not_change_afterwards() -> None:
    tally = Tally()
    before = tally.sums(counts(SEEN=1))
    tally.export(1)
    tally.lose(Lost.QUEUE_FULL, 1)
    assert before.in_flight == 1
    assert tally.sums(counts(SEEN=2)).in_flight == 0


def test_json_has_all_that_counts() -> None:
    lost = {Lost.PARSER: 2, Lost.RING_FULL: 0, Lost.EXPORT_FAILED: 1}
    missed = {"kprobe tcp_sendmsg_locked": 2}
    interfaces = {
        "eth0": Coverage(Gap.GONE, {Gap.GONE: 1.23456, Gap.BEHIND: 2.0}), "lo": Coverage(),
    }  # fmt: skip
    sums = Sums(
        23, 15, 4, lost, {"opened": 5}, missed, {"marks_joined": 3}, interfaces, {"stray": 7}
    )  # fmt: skip
    assert json.loads(sums.as_json()) == {
        "seen": 23,
        "exported": 15,
        "sampled_out": 4,
        "ignored": 0,
        "in_flight": 1,
        "lost": {"parser": 2, "export_failed": 1},
        "connections": {"opened": 5},
        "segments": {"stray": 7},
        "missed": {"kprobe tcp_sendmsg_locked": 2},
        "joins": {"marks_joined": 3},
        "interfaces": {
            "eth0": {"unmeasured": "gone", "unmeasured_s": {"gone": 1.235, "behind": 2.0}},
            "lo": {"unmeasured": None, "unmeasured_s": {}},
        },
    }


@pytest.mark.parametrize(
    ("sums", "text"),
    [
        (Sums(0, 0, 0, {}), "seen 0 = exported 0 + sampled out 0 + lost 0"),
        (
            Sums(9, 4, 2, {Lost.PARSER: 1, Lost.QUEUE_FULL: 2, Lost.CLOSED: 0}),
            "seen 9 = exported 4 + sampled out 2 + lost 3 (parser 1, queue_full 2)",
        ),
        (Sums(9, 4, 2, {}), "seen 9 = exported 4 + sampled out 2 + lost 0 + in flight 3"),
    ],
)
def test_in_words(sums: Sums, text: str) -> None:
    assert str(sums) == text


def test_names_are_unique_and_stable() -> None:
    assert sorted(Lost) == [
        "closed_before_head",
        "evicted",
        "export_failed",
        "parser",
        "pipeline_full",
        "queue_full",
        "refused",
        "rejected",
        "ring_full",
        "table_full",
        "too_large",
        "unanswered_at_stop",
        "unread_at_stop",
        "untaken",
    ]


def test_many_threads_count_together() -> None:
    tally = Tally()

    def count() -> None:
        for _ in range(1_000):
            tally.export(1)
            tally.sample_out(1)
            tally.lose(Lost.QUEUE_FULL, 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sums = tally.sums(counts(SEEN=24_000))
    assert (sums.exported, sums.sampled_out, sums.lost[Lost.QUEUE_FULL]) == (8_000,) * 3
    assert sums.in_flight == 0

# SPDX-License-Identifier: Apache-2.0
"""What the agent does with requests that the kernel has not added up; the kernel is made up."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from samples import BEGIN_KTIME_NS, SMALL, address, numbered, record
from series_kernel import MOST, THIS, WHOLE, Kernel, one
from support.stages import stages_of
from support.waiting import DEADLINE_S

from otelbpf.host.clock import ClockReading
from otelbpf.host.processes import NOBODY, Process
from otelbpf.host.resource import Resources
from otelbpf.kernel.records import (
    SERIES,
    STAGE_ORDER,
    RequestFlag,
    Stamp,
)
from otelbpf.ledger.request import KINDS
from otelbpf.metrics import series_places
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.snapshot import Series, buckets_of
from otelbpf.metrics.stage_places import OTHER_STAGES
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Slow

LENGTH_NS = SMALL[Stamp.TC_OUT] - SMALL[Stamp.NIC]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    kernel = Kernel()
    yield kernel
    kernel.close()


@pytest.fixture
def table(kernel: Kernel) -> Iterator[SeriesTable]:
    slow = Slow(LENGTH_NS + 1, (("/slow", LENGTH_NS),))
    table = SeriesTable(kernel, Routes(), Resources("tested"), slow)  # type: ignore[arg-type]
    yield table
    table.close()


def hash_of(route_hash: int, process: Process = THIS) -> int:
    """As add_to_series() of bpf/ledger/series.h has it."""
    pid, _, cgroup_id, stack, comm = process
    hashed = 0
    for word in (stack, cgroup_id, *np.frombuffer(comm.ljust(16, b"\0"), np.uint64).tolist()):
        hashed = (hashed ^ word) * 0x9E3779B97F4A7C15 % 2**64
    return route_hash ^ (hashed if pid else 0)


def test_a_new_series_gets_a_place_and_the_kernel_is_told(
    kernel: Kernel, table: SeriesTable
) -> None:
    assert table.snapshot() == ()
    slow = table.add(np.concatenate([one("/a/1", 11), one("/slow", 12), one("/a/2", 11)]))
    assert slow.tolist() == [False, True, False]
    by_route = {series.key.route: series for series in table.snapshot()}
    assert {route: series.duration.count for route, series in by_route.items()} == {
        "/a/{id}": 2, "/slow": 1
    }  # fmt: skip
    assert by_route["/slow"].duration.sum_ns == LENGTH_NS
    assert np.flatnonzero(by_route["/slow"].duration.counts).tolist() == [buckets_of(LENGTH_NS)]
    assert {
        (int(key["hash"]), int(key["status"]), int(key["port"]), int(at["slow_ns"]))
        for key, at in kernel.told
    } == {(hash_of(11), 200, 80, LENGTH_NS + 1), (hash_of(12), 200, 80, LENGTH_NS)}
    assert len({int(place["row"]) for _, place in kernel.told}) == 2


def test_nobody_waits_for_a_snapshot(
    kernel: Kernel, table: SeriesTable, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests are added while it is taken, and no series ends before it is there."""
    ended: list[float] = []
    monkeypatch.setattr(table._places, "end_silent", lambda _, now_s: ended.append(now_s) or [])
    living = table._places.living

    def meanwhile() -> Iterator[series_places.Living]:
        for each in living():
            table.add(one("/later", 12))
            table.exemplify(dataclasses.replace(numbered(1), records=one("/later", 12)))
            table.refresh(1.0)
            yield each

    table.add(one("/a", 11))
    monkeypatch.setattr(table._places, "living", meanwhile)
    taken: list[tuple[Series, ...]] = []
    taking = threading.Thread(target=lambda: taken.append(table.snapshot()), daemon=True)
    taking.start()
    taking.join(DEADLINE_S)
    assert {series.key.route for series in taken[0]} == {"/a", "/later"}
    assert ended == []
    table.refresh(2.0)
    assert ended == [2.0]


def test_the_kernel_is_told_again_since_it_may_have_forgotten(
    kernel: Kernel, table: SeriesTable
) -> None:
    table.add(one("/a", 11))
    ((_, first),) = kernel.told
    for _ in range(2):
        kernel.forget()
        table.add(one("/a", 11))
        assert [place for _, place in kernel.told] == [first]


def test_a_key_is_where_the_kernel_looks_for_it(kernel: Kernel, table: SeriesTable) -> None:
    """As find_place() of bpf/ledger/series.h does."""
    for number in range(1, 24):
        table.add(one("/a", number << 40 | number))
    sets = kernel.sets
    for key, _ in kernel.told:
        first, second = np.frombuffer(key.tobytes(), np.uint64).tolist()
        assert second == 80 | 200 << 16
        at = ((first ^ second) * 0x9E3779B97F4A7C15 % 2**64 >> 32) % 8192
        assert key in sets["keys"][at]
    assert len(kernel.told) == 23


def test_more_keys_than_there_are_ways(kernel: Kernel, table: SeriesTable) -> None:
    """Each takes the way of another one, in turn; the place is that of the route all the same."""
    in_one_set, hashes = [], iter(range(1, 1 << 20))
    while len(in_one_set) < 6:
        route_hash = next(hashes)
        product = (hash_of(route_hash) ^ (80 | 200 << 16)) * 0x9E3779B97F4A7C15 % 2**64
        if product >> 32 & 8191 == 23:
            in_one_set.append(route_hash)
    for route_hash in in_one_set:
        table.add(one("/a", route_hash))
    hashes = [hash_of(route_hash) for route_hash in in_one_set]
    assert {int(key["hash"]) for key, _ in kernel.told} == set(hashes[2:])
    assert len({bytes(place) for _, place in kernel.told}) == 1
    table.add(one("/a", in_one_set[0]))
    assert hashes[0] in {int(key["hash"]) for key, _ in kernel.told}
    assert hashes[2] not in {int(key["hash"]) for key, _ in kernel.told}
    assert len(kernel.told) == 4


def test_the_kernels_sums_and_ours_are_one(kernel: Kernel, table: SeriesTable) -> None:
    table.add(one("/a", 11, request_bytes=5))
    ((_, place),) = kernel.told
    kernel.adds(place, "request_bytes", 100)
    (series,) = table.snapshot()
    assert series.request_bytes == 105


def test_what_each_processor_has_added_is_one_sum(kernel: Kernel, table: SeriesTable) -> None:
    """Where there are more processors than rows, and only some series have several."""
    series = MOST - len(KINDS)
    routes = ["/" + "x" * number for number in range(series)]
    for number, route in enumerate(routes):
        table.add(one(route, 100 + number))
    assert {int(place["cpu_mask"]) for _, place in kernel.told} == {0, 3}
    for number, route in enumerate(routes):
        for _ in range(16 + number):
            assert kernel.request(one(route, 100 + number, request_bytes=7))
    found = {series.key.route: series for series in table.snapshot()}
    assert {route: each.duration.count for route, each in found.items()} == {
        route: 17 + number for number, route in enumerate(routes)
    }
    for number, route in enumerate(routes):
        assert found[route].request_bytes == 7 * (16 + number) + one(route, 1)["request_bytes"][0]
        assert found[route].duration.sum_ns == LENGTH_NS * (17 + number)


def test_the_kernel_is_not_told_of_what_it_will_not_ask_for(
    kernel: Kernel, table: SeriesTable
) -> None:
    """One that was cut short has no status, whatever that was to be."""
    table.add(one("/a", 11, flags=RequestFlag.REQUEST_RECEIVED | RequestFlag.PEER_RESET))
    (series,) = table.snapshot()
    assert (series.key.status, series.key.ended_by) == (0, "client_reset")
    assert kernel.told == []


GONE = Process(1 << 22, 7, 1, 77, b"shop")  # above every pid


@pytest.fixture
def own_names(kernel: Kernel) -> Iterator[SeriesTable]:
    """A table in which each service has its own name."""
    table = SeriesTable(kernel, Routes(), Resources(None), Slow())  # type: ignore[arg-type]
    yield table
    table.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Its one element is the time in seconds."""
    now_s = [100.0]
    monkeypatch.setattr(series_places.time, "monotonic", lambda: now_s[0])
    return now_s


def counts(table: SeriesTable) -> dict[object, int]:
    return {
        series.key.resource.attributes["service.name"]: series.duration.count
        for series in table.snapshot()
    }


def test_each_service_has_its_own_series(kernel: Kernel, own_names: SeriesTable) -> None:
    """On the same port, with the same route, one after the other or at once."""
    ours = str(Resources(None).of(THIS).resource.attributes["service.name"])
    bank = GONE._replace(comm=b"bank", stack=78)
    python = GONE._replace(comm=b"python3", stack=79)
    for _ in range(3):
        records = [one("/a", 11, process) for process in (THIS, GONE, bank, python, NOBODY, THIS)]
        own_names.add(np.concatenate(records))
    assert counts(own_names) == {ours: 6, "shop": 3, "bank": 3, "unknown_service": 6}
    assert {int(key["hash"]) for key, _ in kernel.told} == {hash_of(11)}


def test_what_has_forked_from_one_another_has_one_key(
    kernel: Kernel, own_names: SeriesTable
) -> None:
    for number in range(5):
        child = THIS._replace(pid=(1 << 22) + number, start_boottime_ns=number)
        own_names.add(one("/a", 11, THIS if number == 0 else child))
    assert list(counts(own_names).values()) == [5]
    assert len(kernel.told) == 1


def test_who_is_gone_may_be_known_later_but_not_forever(
    kernel: Kernel, own_names: SeriesTable, clock: list[float]
) -> None:
    """The kernel is told once the name will not change; so that of a fork's is not missed."""
    for after_s in (0.0, 1.0, 1.0):
        clock[0] += after_s
        own_names.add(one("/a", 11, GONE))
        assert kernel.told == []
    clock[0] += 0.1
    own_names.add(one("/a", 11, GONE))
    assert {int(key["hash"]) for key, _ in kernel.told} == {hash_of(11, GONE)}
    assert counts(own_names) == {"shop": 4}


def test_of_what_nobody_has_read_the_kernel_is_told_nothing(
    kernel: Kernel, own_names: SeriesTable, clock: list[float]
) -> None:
    """Who listens there is somebody else some day."""
    for _ in range(3):
        clock[0] += 10.0
        own_names.add(one("/a", 11, NOBODY))
    assert kernel.told == []
    assert counts(own_names) == {"unknown_service": 3}


def test_those_without_a_place_are_of_no_service(kernel: Kernel, own_names: SeriesTable) -> None:
    """They may be of several."""
    for number in range(MOST + 3):
        own_names.add(one("/" + "x" * number, 100 + number))
    (overflow,) = (series for series in own_names.snapshot() if series.key.overflow)
    assert overflow.key.resource.attributes["service.name"] == "unknown_service"


@pytest.mark.parametrize(
    ("target", "host", "route", "server"),
    [
        ("/x/7", b"shop.internal:81", "/x/{id}", ("shop.internal", 81)),
        ("/x/7", b"", "/x/{id}", ("192.0.2.9", 9090)),
        ("http://10.0.0.1:9000/x", b"proxy", "/x", ("10.0.0.1", 9000)),
        ("http://10.0.0.1/x", b"proxy", "/x", ("10.0.0.1", 80)),
    ],
)
def test_whom_clients_have_asked(
    table: SeriesTable, target: str, host: bytes, route: str, server: tuple[str, int]
) -> None:
    table.add(one(
        target, 11, flags=WHOLE | RequestFlag.CLIENT, host=host, peer_port=9090,
        peer_address=address("192.0.2.9"),
    ))  # fmt: skip
    (series,) = table.snapshot()
    assert (series.key.route, series.key.server_address, series.key.server_port) == (
        route, *server
    )  # fmt: skip


@pytest.mark.parametrize("target", ["http://10.0.0.1:9000/x/7", "http://shop.example/x/7", "/x/8"])
def test_a_server_has_no_host_in_its_routes(table: SeriesTable, target: str) -> None:
    table.add(one(target, 11))
    (series,) = table.snapshot()
    assert (series.key.route, series.key.server_address, series.key.server_port) == (
        "/x/{id}", "", 80
    )  # fmt: skip


def test_when_all_places_are_taken(kernel: Kernel, table: SeriesTable) -> None:
    for number in range(MOST + 3):
        table.add(one("/" + "x" * number, 100 + number))
        assert bool(kernel.overflow) == (number >= MOST - 3)
    assert len(kernel.told) == MOST - 2
    (overflow,) = (series for series in table.snapshot() if series.key.overflow)
    assert overflow.duration.count == 5
    assert {kind: int(at["slow_ns"]) for kind, at in kernel.overflow.items()} == {
        0: LENGTH_NS + 1, 1: LENGTH_NS + 1
    }  # fmt: skip


def test_the_places_that_are_left_go_to_those_that_came_first(
    kernel: Kernel, table: SeriesTable
) -> None:
    """Of many in one batch, too."""
    came = [f"/{'x' * number}" for number in range(MOST + 3)]
    table.add(np.concatenate([one(route, 1000 - number) for number, route in enumerate(came)]))
    found = {series.key.route for series in table.snapshot() if not series.key.overflow}
    assert found == set(came[: MOST - 2])


def test_more_stages_than_there_are_places(table: SeriesTable) -> None:
    """Every two stamps are a stage of some request: 120 of them."""
    flags = WHOLE | RequestFlag.CLIENT  # a server's ends with its response
    times = [record({first: 1_000, second: 2_000}, flags=flags, status=200)
             for first in range(16) for second in range(first + 1, 16)]  # fmt: skip
    table.add(np.concatenate(times))
    (series,) = table.snapshot()
    assert len(series.stages) == SERIES["stages"].shape[0]
    assert series.stages[OTHER_STAGES].count == 120 - len(series.stages) + 1
    assert sum(stage.count for stage in series.stages.values()) == 120


def test_the_last_of_those_that_became_spans_are_exemplars(table: SeriesTable) -> None:
    records = np.concatenate([one("/a", 11) for _ in range(6)])
    requests = dataclasses.replace(numbered(6), records=records, clock=ClockReading(0, 0))
    table.add(records)

    def exemplars() -> list[int]:
        (series,) = table.snapshot()
        return [exemplar.span_id for exemplar in series.exemplars]

    table.exemplify(requests[:2])
    assert exemplars() == [2, 1]
    table.exemplify(dataclasses.replace(requests[2:3], clock=ClockReading(7, 0)))
    assert exemplars() == [3, 2, 1]
    latest = table.snapshot()[0].exemplars[0]
    assert latest.trace_id == 1 << 64
    assert latest.duration_ns == LENGTH_NS
    assert latest.unix_ns == BEGIN_KTIME_NS + LENGTH_NS + 7
    table.exemplify(requests)
    assert exemplars() == [6, 5, 4, 3]
    # A series that nobody has named has none.
    table.exemplify(dataclasses.replace(requests[:1], records=one("/b", 99)))
    assert len(table.snapshot()) == 1


def test_exemplars_are_the_last_ones_of_a_series_whatever_keys_it_has(table: SeriesTable) -> None:
    """Paths of one route have several keys."""
    records = np.concatenate([one("/a", 11 + number % 2) for number in range(7)])
    requests = dataclasses.replace(numbered(7), records=records)
    table.add(records)
    table.exemplify(requests)
    (series,) = table.snapshot()
    assert [exemplar.span_id for exemplar in series.exemplars] == [7, 6, 5, 4]


def orders_told(kernel: Kernel) -> dict[tuple[Stamp, ...], list[int]]:
    """What the kernel knows of orders of stamps."""
    size = 256 * STAGE_ORDER.itemsize
    orders = np.frombuffer(os.pread(kernel.files["stage_orders"], size, 0), STAGE_ORDER)
    told = {}
    for each in orders:
        numbers = each["order"]["words"].view(np.uint8)
        if numbers.any():
            told[tuple(Stamp(n - 1) for n in numbers[numbers != 0])] = each["places"].tolist()
    return told


def test_the_kernel_is_told_of_an_order_of_stamps_once(kernel: Kernel, table: SeriesTable) -> None:
    """Those of the same nanosecond in the order of the way; none that comes after the end."""
    times = {Stamp.TC: 10, Stamp.READ: 40, Stamp.NIC_LAST: 20, Stamp.WRITE: 40, Stamp.ACKED: 50}
    for _ in range(2):
        table.add(one("/a", 11, times=times))
        ((order, places),) = orders_told(kernel).items()
        assert order == (Stamp.TC, Stamp.NIC_LAST, Stamp.READ, Stamp.WRITE)
        assert places[3:] == [0] * 21
    (_, at), *_ = kernel.told
    for number, place in enumerate(places[:3], 1):
        kernel.adds_to_stage(at, place, number * 1_000)
    (series,) = table.snapshot()
    in_order = stages_of([times.get(stamp, 0) for stamp in tuple(Stamp)[: Stamp.ACKED]])
    assert {name: stage.sum_ns for name, stage in series.stages.items()} == {
        stage.name: number * 1_000 + 2 * (stage.end_ktime_ns - stage.start_ktime_ns)
        for number, stage in enumerate(in_order, 1)
    }
    assert (series.duration.sum_ns, series.duration.count) == (60, 2)
    assert (series.acked.sum_ns, series.acked.count) == (20, 2)


def test_an_order_of_all_stamps(kernel: Kernel, table: SeriesTable) -> None:
    table.add(record({stamp: 100 + stamp for stamp in Stamp}, flags=WHOLE, status=200))
    assert list(orders_told(kernel)) == [tuple(Stamp)[: Stamp.ACKED]]
    (series,) = table.snapshot()
    assert len(series.stages) == Stamp.ACKED - 1


def test_more_orders_than_there_is_room_for(kernel: Kernel, table: SeriesTable) -> None:
    """Those that were told stay as they were."""
    names = list(Stamp)[: Stamp.ACKED]
    for number in range(2**10):
        times = {stamp: 1 + i for i, stamp in enumerate(names) if i > 9 or number >> i & 1}
        table.add(record(times, flags=WHOLE, status=200))
        if number == 20:
            first = orders_told(kernel)
    assert len(first) == 21
    told = orders_told(kernel)
    assert 200 < len(told) <= 256
    assert {order: told[order] for order in first} == first

# SPDX-License-Identifier: Apache-2.0
"""All requests in sums: the kernel's own, and those of what it leaves to the agent."""

from __future__ import annotations

import itertools
import os
import random
import secrets
import string
import subprocess
import sys
import threading
from collections import Counter as Multiset
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from string import ascii_lowercase

import numpy as np
import pytest
from lab import (
    PORT,
    SERVER_IPV4,
    SERVER_IPV6,
    Pair,
    laboratory,
    on_processor,
    receive,
    reset,
)
from messages import CHUNKED, OK, chunks, request, response
from meter import SMALL, Meter, load, told_stages
from sums_of_connections import LIMITS
from sums_of_connections import Sums as OfConnections
from support.waiting import wait_until

from otelbpf.host.resource import Resources
from otelbpf.kernel import libbpf
from otelbpf.kernel.limits import Limits
from otelbpf.kernel.mapped import MappedArray
from otelbpf.kernel.records import SERIES, Counter, RequestFlag, Stamp
from otelbpf.kernel.series_rows import EACH_MOST
from otelbpf.ledger.request import KINDS, Kind
from otelbpf.metrics.series import SeriesTable
from otelbpf.metrics.series_places import ENDING_MOST, SILENT_S
from otelbpf.metrics.snapshot import UPPER_NS, Series, SeriesKey
from otelbpf.policy.routes import Routes
from otelbpf.policy.sampler import Sampler, Slow

FEW = Limits(SMALL.connections, SMALL.ring, series=8)
TEMPLATES = ("/files/{name}", "/slow")
NEVER = Slow()


class Sums:
    """A meter whose programs add up, and the table of the sums."""

    def __init__(self, meter: Meter, slow: Slow = NEVER) -> None:
        self.meter = meter
        self.table = SeriesTable(meter.programs, Routes(TEMPLATES), Resources("tested"), slow)

    def take(self, count: int) -> np.ndarray:
        """`count` records; those that the kernel has not added up are added."""
        records = self.meter.records(count)
        self.slow = self.table.add(records[~in_series(records)])
        return records

    def found(self, **like: object) -> list[Series]:
        """The series whose keys have these attributes."""
        return [
            series
            for series in self.table.snapshot()
            if all(getattr(series.key, name) == value for name, value in like.items())
        ]


def in_series(records: np.ndarray) -> np.ndarray:
    return records["flags"] & np.uint32(RequestFlag.IN_SERIES) != 0


def asking(method: str, target: str, host: str) -> bytes:
    """A request with this Host header; empty: with none."""
    asked = request(method, target, {"Host": host})
    return asked if host else asked.replace(b"Host: \r\n", b"")


@contextmanager
def summing(meter: Meter, slow: Slow = NEVER) -> Iterator[Sums]:
    """The sums of a meter that is attached as long; once for each load of the programs."""
    sums = Sums(meter, slow)
    with closing(sums.table), meter.attached():
        yield sums


@pytest.fixture(scope="module")
def _attached(sums_of_servers: OfConnections) -> Iterator[Sums]:
    with summing(sums_of_servers.meter) as sums:
        yield sums


@pytest.fixture
def sums(_attached: Sums) -> Iterator[Sums]:
    _attached.meter.begin()
    yield _attached
    _attached.meter.end()


@pytest.fixture(scope="module")
def _clients(sums_of_clients: OfConnections) -> Iterator[Sums]:
    with summing(sums_of_clients.meter) as sums:
        yield sums


@pytest.fixture
def clients(_clients: Sums) -> Iterator[Sums]:
    """Those of requests to upstreams."""
    _clients.meter.begin()
    yield _clients
    _clients.meter.end()


def assert_adds_up(series: Series, records: np.ndarray) -> None:
    """It has just these requests, each stage of them in the bucket where it belongs."""
    by_hand = [told_stages(record) for record in records]
    assert series.duration.count == len(records)
    lengths = [stages[-1].end_ktime_ns - stages[0].start_ktime_ns for stages in by_hand]
    assert_holds(series.duration.counts, lengths)
    assert series.duration.sum_ns == sum(lengths)
    acked = [
        int(record["stamp_ktime_ns"][Stamp.ACKED]) - stages[-1].end_ktime_ns
        for record, stages in zip(records, by_hand, strict=True)
        if record["stamp_ktime_ns"][Stamp.ACKED]
    ]
    assert_holds(series.acked.counts, acked)
    assert series.acked.sum_ns == sum(acked)
    assert series.request_bytes == records["request_bytes"].sum()
    assert series.response_bytes == records["response_bytes"].sum()
    by_name: dict[str, list[int]] = {}
    for stage in (stage for stages in by_hand for stage in stages):
        by_name.setdefault(stage.name, []).append(stage.end_ktime_ns - stage.start_ktime_ns)
    assert series.stages.keys() == by_name.keys()
    for name, lengths in by_name.items():
        assert series.stages[name].sum_ns == sum(lengths), name
        assert_holds(series.stages[name].counts, lengths)


def assert_holds(counts: np.ndarray, lengths: Sequence[int]) -> None:
    """One by one, by the buckets' bounds and not by how the bucket was found."""
    assert counts.sum() == len(lengths)
    for length in lengths:
        (bucket,) = (
            i
            for i, upper in enumerate(UPPER_NS)
            if length <= upper and (i == 0 or length > UPPER_NS[i - 1])
        )
        assert counts[bucket], f"{length} ns is not in bucket {bucket}"
    assert np.count_nonzero(counts) == len(
        {int(np.searchsorted(UPPER_NS, length)) for length in lengths}
    )


@pytest.mark.guest
def test_the_sums_are_those_of_the_records(sums: Sums) -> None:
    """Half of them by the agent, that knows a new series first, half by the kernel."""
    pair = sums.meter.lab.connect()
    taken = []
    for number in range(200):
        pair.exchange(request(target="/sums"), response(200, body=b"x" * (number % 7)))
        taken.append(sums.take(1))
    records = np.concatenate(taken)
    # A stage that is new keeps a request from the kernel's sums, and none of them does for long.
    assert not in_series(records)[0]
    assert in_series(records)[-100:].sum() >= 90
    (series,) = sums.found(route="/sums")
    assert series.key == SeriesKey(
        Kind.SERVER,
        series.key.resource,
        "GET",
        "/sums",
        200,
        server_port=int(records["local_port"][0]),
    )
    assert_adds_up(series, records)


@pytest.mark.guest
def test_each_processor_adds_to_a_row_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as there are rows; here as many as sixteen processors have, however many there are."""
    processors = sorted(os.sched_getaffinity(0))
    possible = max(16, libbpf.possible_cpus())
    monkeypatch.setattr(libbpf, "possible_cpus", lambda: possible)
    with laboratory() as lab, closing(load(lab, FEW)) as meter, summing(meter) as sums:
        meter.begin()
        rows = meter.programs.series_rows
        assert rows.each == EACH_MOST
        pair = lab.connect()
        records = []
        expected = np.zeros(rows.count, np.uint64)
        for turn, processor in enumerate(processors):
            with on_processor(processor):
                for _ in range(10 + turn):
                    pair.exchange(request(target="/spread"), OK)
                    records.append(sums.take(1))
                    if in_series(records[-1]).all():
                        row = rows.rows_of(len(KINDS)).start + processor % EACH_MOST
                        expected[row] += np.uint64(1)
        with closing(MappedArray(meter.programs.map_fd("series"), SERIES, rows.count)) as mapped:
            added = mapped.values["duration"]["counts"].sum(axis=1)
            assert added.tolist() == expected.tolist()
        assert np.count_nonzero(expected) == min(len(processors), EACH_MOST)
        (series,) = sums.found(route="/spread")
        assert_adds_up(series, np.concatenate(records))
        meter.end()


def test_bodies_whose_last_byte_comes_before_the_first_is_read(sums: Sums) -> None:
    """Stamps that are not in the order of the way are sorted by the kernel as by the agent."""
    taken = []
    for _ in range(30):
        pair = sums.meter.lab.connect()
        asked = request("POST", "/upload", body=b"b" * 9_000)
        pair.client.sendall(asked[:100])
        pair.client.sendall(asked[100:])
        receive(pair.server, len(asked))
        pair.answer(response(201, CHUNKED) + chunks([b"one", b"two"]))
        taken.append(sums.take(1))
    records = np.concatenate(taken)
    assert in_series(records).any()
    (series,) = sums.found(route="/upload")
    assert series.key.method == "POST"
    assert_adds_up(series, records)


@pytest.mark.guest
@pytest.mark.parametrize(
    ("targets", "route"),
    [
        (["/users/12/orders", "/users/7/orders?page=3", "/users/f47ac10b/orders"],
         "/users/{id}/orders"),
        (["/v1/chat", "/v1/chat?x=1"], "/v1/chat"),
        (["/v2beta1/oauth2/s3", "/v2beta1/oauth2/s3"], "/v2beta1/oauth2/s3"),
        (["/99", "/1"], "/{id}"),
        (["/a/1/", "/a/22/"], "/a/{id}/"),
        (["/v123456789", "/v99999999x"], "/{id}"),
        (["//", "//?"], "//"),
    ],
)  # fmt: skip
def test_paths_of_one_route_have_one_number(sums: Sums, targets: list[str], route: str) -> None:
    pair = sums.meter.lab.connect()
    before = sum(series.duration.count for series in sums.found(route=route, method="PUT"))
    for target in targets:
        pair.exchange(request("PUT", target), OK)
    records = sums.take(len(targets))
    assert len(set(records["route_hash"].tolist())) == 1
    (series,) = sums.found(route=route, method="PUT")
    assert series.duration.count == before + len(targets)


@pytest.mark.guest
def test_paths_of_other_routes_have_other_numbers(sums: Sums) -> None:
    targets = ["/", "/a", "/a/", "/a/b", "/ab", "/a/1", "/1/a", "/a/b/1", "/v1", "/v2", "/a1",
               "/{id}", "/x" * 94, "/x" * 93, "*", "http://host/a"]  # fmt: skip
    pair = sums.meter.lab.connect()
    for target in targets:
        pair.exchange(request("PUT", target), OK)
    pair.exchange(request("PATCH", "/a"), OK)
    records = sums.take(len(targets) + 1)
    assert len(set(records["route_hash"].tolist())) == len(targets) + 1


def test_a_server_has_one_number_for_a_route_whatever_host_is_asked(sums: Sums) -> None:
    pair = sums.meter.lab.connect()
    for host in ("shop.example", "shop.example:80", "x" * 64, ""):
        pair.exchange(asking("PUT", "/hosts", host), OK)
    for authority in ("10.0.0.1:9000", "10.0.0.2"):
        pair.exchange(request("PUT", f"http://{authority}/hosts"), OK)
    records = sums.take(6)
    assert len(set(records["route_hash"].tolist()[:4])) == 1
    (series,) = sums.found(route="/hosts", method="PUT")
    assert series.duration.count == 6


def test_each_process_has_its_own_key(sums: Sums) -> None:
    """But for those that were forked: the kernel adds up what a process for each connection has
    read, without asking whose that is each time."""
    # The table is all these tests', and this one may be run again.
    route = "/" + "".join(secrets.choice(string.ascii_lowercase) for _ in range(12))
    # Of forks that are gone when they are asked about, their living parent tells the service.
    sums.meter.lab.connect().exchange(request(target=route), OK)
    sums.take(1)
    for _ in range(60):
        pair = sums.meter.lab.connect()
        child = os.fork()
        if not child:
            pair.exchange(request(target=route), OK)
            os._exit(0)
        os.waitpid(child, 0)
        record = sums.take(1)
    assert in_series(record).all()
    (series,) = sums.found(route=route)
    assert series.duration.count == 1 + 60
    for _ in range(2):
        pair = sums.meter.lab.connect()
        command = [sys.executable, "-c", _READ, str(pair.server.fileno())]
        pair.client.sendall(request(target=route))
        subprocess.run(command, pass_fds=[pair.server.fileno()], check=True)
        pair.answer(OK)
        assert not in_series(sums.take(1)).any()


_READ = "import os, sys; os.read(int(sys.argv[1]), 4096)"


@pytest.mark.guest
def test_a_template_gathers_paths_that_the_kernel_tells_apart(sums: Sums) -> None:
    pair = sums.meter.lab.connect()
    for target in ("/files/alpha", "/files/beta", "/files/alpha"):
        pair.exchange(request(target=target), OK)
        sums.take(1)
    (series,) = sums.found(route="/files/{name}")
    assert series.duration.count == 3


@pytest.mark.guest
def test_each_status_is_a_series(sums: Sums) -> None:
    pair = sums.meter.lab.connect()
    for status in (200, 401, 500, 204, 429, 200):
        body = None if status == 204 else b""
        pair.exchange(request(target="/statuses"), response(status, body=body))
    sums.take(6)
    by_status = {s.key.status: s.duration.count for s in sums.found(route="/statuses")}
    assert by_status == {200: 2, 204: 1, 401: 1, 429: 1, 500: 1}


@pytest.mark.guest
def test_requests_cut_short_are_a_series_of_their_own(sums: Sums) -> None:
    for _ in range(2):
        pair = sums.meter.lab.connect()
        pair.ask(request(target="/cut"))
        reset(pair.server)
        record = sums.take(1)
        assert not in_series(record).any()
    (series,) = sums.found(route="/cut")
    assert series.key.status == 0
    assert series.duration.count == 2


@pytest.mark.guest
def test_methods_that_nobody_knows_are_one(sums: Sums) -> None:
    pair = sums.meter.lab.connect()
    for method in ("BREW", "WHEN"):
        pair.exchange(request(method, "/pot"), OK)
    sums.take(2)
    (series,) = sums.found(route="/pot")
    assert (series.key.method, series.duration.count) == ("_OTHER", 2)


@pytest.fixture(scope="module")
def _sampled_out() -> Iterator[Sums]:
    """Nothing is kept but what fails or is slow: a second, or a tenth for /slow."""
    slow = Slow(1_000_000_000, (("/slow", 100_000_000),))
    sampler = Sampler(0, keep_errors=True)
    with (
        laboratory() as lab,
        closing(load(lab, LIMITS, sampler=sampler)) as meter,
        summing(meter, slow) as sums,
    ):
        yield sums


@pytest.fixture
def sampled_out(_sampled_out: Sums) -> Iterator[Sums]:
    _sampled_out.meter.begin()
    yield _sampled_out
    _sampled_out.meter.end()


def all_ended(sums: Sums) -> None:
    wait_until(lambda: not sums.meter.in_flight(), "every request had ended")


def slowly(pair: Pair, target: str, seconds: float) -> None:
    """An exchange whose response is that late."""
    pair.ask(request(target=target))
    with pytest.raises(TimeoutError):
        pair.client.settimeout(seconds)
        pair.client.recv(1)
    pair.client.settimeout(10)
    pair.answer(OK)


def test_what_is_sampled_out_is_in_the_sums_and_not_in_the_ring(sampled_out: Sums) -> None:
    pair = sampled_out.meter.lab.connect()
    # Each stage is new once; the agent then knows them all.
    learned = 0
    for _ in range(100):
        pair.exchange(request(target="/unsampled"), OK)
        all_ended(sampled_out)
        learned += len(sampled_out.table.add(sampled_out.meter.reader.read()))
    assert 1 <= learned < 40
    assert sampled_out.meter.counted(Counter.SAMPLED_OUT) == 100 - learned
    (series,) = sampled_out.found(route="/unsampled")
    assert series.duration.count == 100


def test_errors_and_slow_ones_are_kept_all_the_same(sampled_out: Sums) -> None:
    pair = sampled_out.meter.lab.connect()
    asked: list[tuple[str, bytes, float]] = [
        ("/slow", OK, 0.0), ("/slow", OK, 0.2), ("/other", OK, 0.2),
        ("/other", response(500, body=b""), 0.0), ("/other", response(404, body=b""), 0.0),
    ]  # fmt: skip
    for turn in range(3):
        kept: Multiset[tuple[bytes, int]] = Multiset()
        for target, answer, seconds in asked:
            if seconds:
                slowly(pair, target, seconds)
            else:
                pair.exchange(request(target=target), answer)
            all_ended(sampled_out)
            for record in sampled_out.meter.reader.read().reshape(-1, 1):
                by_kernel = bool(record["flags"][0] & RequestFlag.KEPT)
                added = bool(in_series(record)[0])
                if by_kernel or (not added and sampled_out.table.add(record)[0]):
                    kept[bytes(record["http1"]["request_line"][0]), int(record["status"][0])] += 1
        assert kept == {(b"GET /slow HTTP/1.1", 200): 1, (b"GET /other HTTP/1.1", 500): 1}, turn


def test_beyond_the_last_series_all_is_overflow() -> None:
    with (
        laboratory() as lab,
        closing(load(lab, FEW, sampler=Sampler(0))) as meter,
        summing(meter) as sums,
    ):
        sums.meter.begin()
        pair = lab.connect()
        for number in range(30):
            pair.exchange(request(target="/over" + "x" * number), OK)
            all_ended(sums)
            sums.table.add(sums.meter.reader.read())
        named = sums.found(overflow=False)
        (overflow,) = sums.found(overflow=True)
        assert len(named) == FEW.series - 2
        assert overflow.key.kind is Kind.SERVER
        assert {series.duration.count for series in named} == {1}
        assert overflow.duration.count == 30 - len(named)
        # The kernel asks no more.
        assert sums.meter.counted(Counter.SUBMITTED) < 30
        sums.meter.end()


@pytest.fixture
def default_many() -> Iterator[Sums]:
    """As many series as there are by default; nothing is kept."""
    limits = Limits(SMALL.connections, SMALL.ring, series=256)
    with (
        laboratory() as lab,
        closing(load(lab, limits, sampler=Sampler(0))) as meter,
        summing(meter) as sums,
    ):
        meter.begin()
        yield sums
        meter.end()


def ask(sums: Sums, pair: Pair, *targets: str) -> None:
    """One after the other; the agent adds what the kernel has not."""
    for target in targets:
        pair.exchange(request(target=target), OK)
        all_ended(sums)
        sums.table.add(sums.meter.reader.read())


def test_a_scanner_does_not_keep_places_for_good(default_many: Sums) -> None:
    """2,000 paths that nobody asks for again; then /checkout, of which nobody had heard before."""
    sums, chance = default_many, random.Random(1)
    pair = sums.meter.lab.connect()
    paths = ["/" + "".join(chance.choices(ascii_lowercase, k=12)) for _ in range(2_000)]
    ask(sums, pair, *paths)
    sums.table.refresh(0.0)
    assert len(sums.found(overflow=False)) == 254
    (overflow,) = sums.found(overflow=True)
    assert overflow.duration.count == 2_000 - 254
    # They have been silent for long enough when it comes.
    ask(sums, pair, "/checkout")
    assert not sums.found(route="/checkout")
    sums.table.refresh(SILENT_S)
    assert len(sums.found(overflow=False)) == 254 - ENDING_MOST
    shown = sums.meter.counted(Counter.SUBMITTED)
    ask(sums, pair, *["/checkout"] * 50)
    (checkout,) = sums.found(route="/checkout")
    assert checkout.duration.count == 50
    # The kernel has asked the agent once, and added the others itself.
    assert sums.meter.counted(Counter.SUBMITTED) == shown + 1
    (overflow,) = sums.found(overflow=True)
    assert overflow.duration.count == 2_000 - 254 + ENDING_MOST + 1
    everything = sums.table.snapshot()
    assert sum(series.duration.count for series in everything) == 2_051
    sent = sum(len(request(target=target)) for target in (*paths, *["/checkout"] * 51))
    assert sum(series.request_bytes for series in everything) == sent
    for stages in (overflow.stages, checkout.stages):
        assert {"tc_to_tcp", "write_to_tc_out"} <= stages.keys()


def test_places_change_hands_while_requests_end() -> None:
    """Time passes in no time here, so that many series end; no request is lost or misplaced."""
    with (
        laboratory() as lab,
        closing(load(lab, FEW, sampler=Sampler(0))) as meter,
        summing(meter) as sums,
    ):
        meter.begin()
        asked_each: list[Multiset[int]] = [Multiset(), Multiset()]
        enough = threading.Event()

        def go_on(pair: Pair, asked: Multiset[int]) -> None:
            chance = random.Random(pair.peer_port)
            while not enough.is_set():
                # A path's requests are all of one length, and each path's of another.
                number = chance.randrange(20)
                pair.exchange(request(target="/" + "x" * number), OK)
                asked[number] += 1
                while meter.reader.pending > FEW.ring // 4:
                    enough.wait(0.001)

        def look(now_s: float) -> int:
            """How many series end."""
            sums.table.add(meter.reader.read())
            before = {series.key for series in sums.table.snapshot()}
            sums.table.refresh(now_s)
            return len(before - {series.key for series in sums.table.snapshot()})

        threads = [
            threading.Thread(target=go_on, args=(lab.connect(), asked)) for asked in asked_each
        ]
        for thread in threads:
            thread.start()
        now_s, ended = 0.0, 0
        while ended < 50 and all(thread.is_alive() for thread in threads):
            now_s += SILENT_S
            ended += look(now_s)
        enough.set()
        for thread in threads:
            thread.join()
        assert ended >= 50
        asked = sum(asked_each, Multiset())
        all_ended(sums)
        while meter.reader.pending:
            look(now_s)
        everything = sums.table.snapshot()
        assert sum(series.duration.count for series in everything) == asked.total()
        for series in everything:
            if not series.key.overflow:
                each = len(request(target=series.key.route))
                assert series.request_bytes == each * series.duration.count
                assert series.duration.count <= asked[len(series.key.route) - 1]
        assert sum(series.request_bytes for series in everything) == sum(
            len(request(target="/" + "x" * number)) * count for number, count in asked.items()
        )
        meter.end()


@pytest.mark.guest
def test_upstreams_are_told_apart_by_address_and_are_of_another_kind(clients: Sums) -> None:
    taken = {}
    for host in (SERVER_IPV4, SERVER_IPV6):
        pair = clients.meter.lab.connect(host)
        records = []
        for _ in range(40):
            pair.ask(asking("GET", "/up/1", ""))
            pair.answer(OK)
            records.append(clients.take(1))
        taken[host] = np.concatenate(records)
    for host, records in taken.items():
        assert in_series(records).any()
        (series,) = clients.found(server_address=host, route="/up/{id}")
        assert (series.key.kind, series.key.server_port) == (Kind.CLIENT, PORT)
        assert_adds_up(series, records)


# Hosts that a request to one and the same upstream may be for, and as whose it then counts.
HOSTS = {
    ("/x/7", "shop.example"): ("shop.example", PORT),
    ("/x/7", "shop.example:80"): ("shop.example", 80),
    ("/x/7", "shop.examplf"): ("shop.examplf", PORT),
    ("/x/7", "10.0.0.1"): ("10.0.0.1", PORT),
    ("/x/7", "10.0.0.2"): ("10.0.0.2", PORT),
    ("/x/7", "x" * 7): ("x" * 7, PORT),
    ("/x/7", "x" * 8): ("x" * 8, PORT),
    ("/x/7", "x" * 9): ("x" * 9, PORT),
    ("/x/7", "x" * 63 + "a"): ("x" * 63 + "a", PORT),
    ("/x/7", "x" * 63 + "b"): ("x" * 63 + "b", PORT),
    ("/x/7", ""): (SERVER_IPV4, PORT),
    ("http://10.0.0.1:9000/x/7", ""): ("10.0.0.1", 9000),
    ("http://10.0.0.1:9001/x/7", ""): ("10.0.0.1", 9001),
    ("http://10.0.0.2:9000/x/7", ""): ("10.0.0.2", 9000),
    ("http://10.0.0.2:9000/x/7", "proxy"): ("10.0.0.2", 9000),
    ("http://10.0.0.3/x/7", ""): ("10.0.0.3", 80),
}


def test_the_hosts_that_clients_ask_are_told_apart(clients: Sums) -> None:
    """By what they are asked, not by where it goes; ids in their paths are ids all the same."""

    def counts() -> Multiset[tuple[str, int]]:
        counted: Multiset[tuple[str, int]] = Multiset()
        for series in clients.found(route="/x/{id}", method="PUT"):
            counted[series.key.server_address, series.key.server_port] += series.duration.count
        return counted

    before = counts()  # this test may be run again
    pair = clients.meter.lab.connect(SERVER_IPV4)
    numbers: dict[tuple[str, str], set[int]] = {}
    for turn, (target, host) in itertools.product(range(3), HOSTS):
        # What was in the slot before is longer, and must not count.
        for asked in ("y" * 60, host):
            pair.exchange(asking("PUT", target.replace("/x/7", f"/x/{turn}"), asked), OK)
        record = clients.take(2)[1]
        numbers.setdefault((target, host), set()).add(int(record["route_hash"]))
    assert {len(each) for each in numbers.values()} == {1}
    assert len(set().union(*numbers.values())) == len(HOSTS)
    expected: Multiset[tuple[str, int]] = Multiset()
    for (target, _), server in HOSTS.items():
        # Where the line names the host, the header does not count.
        expected[server if target.startswith("http") else ("y" * 60, PORT)] += 3
        expected[server] += 3
    assert counts() - before == expected


def test_what_connect_asks_for_is_no_id(clients: Sums) -> None:
    for target in ("10.0.0.1:443", "10.0.0.2:443"):
        pair = clients.meter.lab.connect(SERVER_IPV4)
        pair.exchange(request("CONNECT", target), response(502, body=b""))
    records = clients.take(2)
    assert len(set(records["route_hash"].tolist())) == 2
    assert {(s.key.server_address, s.key.route) for s in clients.found(method="CONNECT")} == {
        ("10.0.0.1", ""), ("10.0.0.2", "")
    }  # fmt: skip


@pytest.mark.parametrize("keep_4xx", [False, True])
def test_what_servers_answer_with_4xx_is_kept_if_that_is_wanted(keep_4xx: bool) -> None:
    sampler = Sampler(0, keep_errors=True, keep_4xx=keep_4xx)
    with (
        laboratory() as lab,
        closing(load(lab, SMALL, sampler=sampler)) as meter,
        meter.attached(),
    ):
        meter.begin()
        pair = lab.connect()
        for status in (200, 399, 400, 404, 499, 500):
            pair.exchange(request(), response(status, body=b""))
        wait_until(lambda: not meter.in_flight(), "every request had ended")
        kept = meter.reader.read()["status"].tolist()
        assert kept == ([400, 404, 499, 500] if keep_4xx else [500])
        assert meter.counted(Counter.SAMPLED_OUT) == 6 - len(kept)
        meter.end()

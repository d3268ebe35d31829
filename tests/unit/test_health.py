# SPDX-License-Identifier: Apache-2.0
"""What probes are answered, by what the agent has told; and the ready file, which must not lie."""

from __future__ import annotations

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from otelbpf.agent import health
from otelbpf.agent.health import Health, answering_probes
from otelbpf.agent.lookout import ReadyFile
from otelbpf.errors import UsageError
from otelbpf.ledger.tally import Coverage, Gap

DEADLINE_S = 20.0
WHOLE = {"eth0": Coverage(), "eth1": Coverage(None, {Gap.GONE: 5.0})}


def without(gap: Gap, since_s: float) -> dict[str, Coverage]:
    """Of two interfaces the first is not measured."""
    return {"eth0": Coverage(gap, {gap: 60.0}, since_s), "eth1": Coverage()}


def test_while_it_loads_it_is_alive_and_not_ready() -> None:
    for now_s in (0.0, 10_000.0):
        assert Health().not_alive(now_s) == []
        assert Health().not_ready(now_s) == ["loading programs"]


@pytest.mark.parametrize("coverage", [WHOLE, {}], ids=["whole", "first turn"])
def test_while_its_loop_turns_and_all_is_measured_it_is_both(
    coverage: dict[str, Coverage],
) -> None:
    made = Health()
    for now_s in (100.0, 109.0, 118.0):
        made.turns(coverage, now_s)
        assert made.not_alive(now_s + 9.9) == made.not_ready(now_s + 9.9) == []


def test_a_loop_that_stands_still_is_neither() -> None:
    """And when it turns again it is both again."""
    made = Health()
    made.turns(WHOLE, 100.0)
    still = ["the agent's loop has stood still for 12.5 s: requests are not read"]
    assert made.not_alive(112.5) == made.not_ready(112.5) == still
    made.turns(WHOLE, 113.0)
    assert made.not_alive(113.0) == made.not_ready(113.0) == []


@pytest.mark.parametrize(
    ("gap", "said"),
    [
        (Gap.GONE, "interface eth0: gone for 3.2 s"),
        (Gap.BEHIND, "interface eth0: behind somebody's program that keeps packets for 3.2 s"),
        (Gap.REFUSED, "interface eth0: attaching to it refused for 3.2 s"),
    ],
)
def test_an_interface_that_is_not_measured_needs_no_restart(gap: Gap, said: str) -> None:
    made = Health()
    made.turns(without(gap, 1_000.0), 1_003.0)
    assert made.not_alive(1_003.2) == []
    assert made.not_ready(1_003.2) == [said]
    assert made.not_ready(1_014.0) == [
        "the agent's loop has stood still for 11.0 s: requests are not read",
        said.replace("3.2", "14.0"),
    ]


def test_a_namespace_that_has_ended_needs_a_restart() -> None:
    made = Health()
    made.turns(without(Gap.NAMESPACE_GONE, 1_000.0), 1_003.0)
    said = "interface eth0: gone with its network namespace for 3.2 s"
    assert made.not_alive(1_003.2) == [f"{said}: start otelbpf again for another one"]
    assert made.not_ready(1_003.2) == [said]


def test_while_it_stops_it_is_alive_and_not_ready() -> None:
    made = Health()
    made.turns(without(Gap.NAMESPACE_GONE, 1_000.0), 1_003.0)
    made.stops()
    assert made.not_alive(9_999.0) == []
    assert made.not_ready(9_999.0) == ["stopping"]


def test_each_reason_has_its_words() -> None:
    assert health._NOT_MEASURED.keys() == set(Gap)


def unused(family: socket.AddressFamily, host: str) -> int:
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(params=["127.0.0.1", "::1"])
def authority(request: pytest.FixtureRequest) -> Iterator[tuple[str, str, int]]:
    """A host and a port to listen on, and how a URL has them."""
    host = request.param
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port = unused(family, host)
    yield (f"[{host}]:{port}" if ":" in host else f"{host}:{port}"), host, port


def get(authority: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{authority}{path}", timeout=DEADLINE_S) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_port_answers_for_the_moment(
    authority: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1_000.0
    monkeypatch.setattr(health, "monotonic", lambda: now_s)
    where, *address = authority
    with answering_probes((address[0], address[1])) as told:
        assert get(where, "/livez") == (200, "ok\n")
        assert get(where, "/readyz") == (503, "loading programs\n")
        told.turns(WHOLE, now_s)
        assert get(where, "/readyz") == (200, "ok\n")
        two_gone = {name: Coverage(Gap.GONE, {}, 995.0) for name in ("eth0", "eth1")}
        told.turns(two_gone, now_s)
        assert get(where, "/livez") == (200, "ok\n")
        assert get(where, "/readyz") == (
            503,
            "interface eth0: gone for 5.0 s\ninterface eth1: gone for 5.0 s\n",
        )
        now_s += 10.0
        status, text = get(where, "/livez")
        assert (status, text.count("\n")) == (503, 1)
        assert text.startswith("the agent's loop has stood still for 10.0 s")
        assert get(where, "/") == (404, "what there is to see is at /livez and /readyz\n")
    with pytest.raises(urllib.error.URLError):
        get(where, "/livez")


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_that_is_taken(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as somebody:
        somebody.bind((host, 0))
        somebody.listen()
        port = somebody.getsockname()[1]
        with pytest.raises(UsageError) as refused, answering_probes((host, port)):
            pytest.fail("it listens")
    where = f"[::1]:{port}" if host == "::1" else f"{host}:{port}"
    assert str(refused.value) == (
        f"cannot listen on {where} for probes (Address already in use): give another address by "
        "--health"
    )


@pytest.mark.parametrize("host", ["no.such.host.invalid", "." * 3, "198.51.100.1"])
def test_an_address_that_is_not_this_machines(host: str) -> None:
    with pytest.raises(UsageError, match="--health"), answering_probes((host, 1_024)):
        pytest.fail("it listens")


def age(path: Path, seconds: float) -> None:
    """Makes it look as old."""
    then_s = path.stat().st_mtime - seconds
    os.utime(path, (then_s, then_s))


def test_the_ready_file_is_renewed_while_all_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "ready"
    file = ReadyFile(path)
    file.set(True, 100.0)
    made_s = path.stat().st_mtime
    age(path, 60.0)
    old_s = path.stat().st_mtime
    file.set(True, 100.9)
    assert path.stat().st_mtime == old_s
    file.set(True, 101.0)
    assert path.stat().st_mtime >= made_s
    file.set(False, 101.1)
    assert not path.exists()
    file.set(False, 200.0)
    file.set(True, 200.1)
    assert path.exists()


def test_a_ready_file_that_cannot_be_written_ends_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its directory may be removed; that is said, once."""
    directory = tmp_path / "gone"
    directory.mkdir()
    file = ReadyFile(directory / "ready")
    file.set(True, 1.0)
    (directory / "ready").unlink()
    directory.rmdir()
    for now_s in (2.0, 3.0, 4.0):
        file.set(True, now_s)
    file.set(False, 5.0)
    (logged,) = caplog.records
    assert logged.getMessage() == (
        f"cannot write the ready file {directory}/ready (No such file or directory)"
    )

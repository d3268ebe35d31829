# SPDX-License-Identifier: Apache-2.0
"""What a thread gives up it and its children do not have; others are not touched. Needs no root."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from otelbpf.errors import KernelError
from otelbpf.host import rights
from otelbpf.host.rights import TO_LOOK, TO_START, Capability, had, kept, with_only

SETS = ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs")


def status() -> dict[str, int]:
    """What the kernel says of the calling thread."""
    lines = Path("/proc/thread-self/status").read_text().splitlines()
    fields = dict(line.split(":\t") for line in lines)
    return {name: int(fields[name], 16) for name in SETS}


def in_a_new_thread(function: Callable[[], dict[str, int]]) -> dict[str, int]:
    results: list[dict[str, int]] = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]


@pytest.mark.parametrize(
    "keep",
    [
        set(),
        {Capability.CAP_SYS_PTRACE},
        {Capability.CAP_BPF, Capability.CAP_DAC_OVERRIDE, Capability.CAP_SYS_ADMIN},
    ],
    ids=len,
)
def test_a_thread_gives_up_all_but_what_it_keeps(keep: set[Capability]) -> None:
    before = status()
    bits = sum(1 << each for each in keep)
    assert with_only(keep, status) == {
        "CapInh": 0,
        "CapAmb": 0,
        "NoNewPrivs": 1,
        "CapPrm": before["CapEff"] & bits,
        "CapEff": before["CapEff"] & bits,
        # Only who has CAP_SETPCAP can bind what it is yet to get.
        "CapBnd": before["CapBnd"] & bits if before["CapEff"] >> 8 & 1 else before["CapBnd"],
    }
    assert status() == before


def test_threads_that_it_starts_have_no_more() -> None:
    assert with_only((), lambda: in_a_new_thread(status)) == with_only((), status)


def test_what_it_gives_and_raises_comes_through() -> None:
    assert with_only((), lambda: 23) == 23
    with pytest.raises(ZeroDivisionError):
        with_only((), lambda: 1 // 0)


def test_what_was_not_had_is_not_kept() -> None:
    assert with_only((), lambda: had(TO_LOOK)) == ()
    keep = {right.capability for right in TO_LOOK}
    assert with_only((), lambda: with_only(keep, rights.held)) == frozenset()


def test_what_is_missing_is_named_with_what_it_is_for() -> None:
    with pytest.raises(KernelError) as raised:
        with_only((), rights.require)
    for right in TO_START:
        assert f"{right.capability.name} ({right.purpose})" in raised.value.what
    assert "as root" in raised.value.remedy
    assert with_only((), rights.missing) == list(TO_START)
    with pytest.raises(KernelError, match="CAP_SYS_PTRACE"):
        with_only((), rights.require_to_look)


def names(rights_: tuple[rights.Right, ...]) -> set[str]:
    return {right.capability.name for right in rights_}


@pytest.mark.parametrize(
    ("condition", "capability"),
    [
        ({"programs": True}, "CAP_BPF"),
        ({"namespace": True}, "CAP_SYS_ADMIN"),
        ({"low_port": True}, "CAP_NET_BIND_SERVICE"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_kept_only_where_it_is_needed(condition: dict[str, bool], capability: str) -> None:
    always = {
        "CAP_SYS_PTRACE", "CAP_DAC_READ_SEARCH", "CAP_CHECKPOINT_RESTORE", "CAP_NET_ADMIN",
    }  # fmt: skip
    assert names(kept()) == names(kept(filters=True)) == always
    assert names(kept(**condition)) == always | {capability}


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Path]:
    """A directory that nobody can write to without a right."""
    directory = tmp_path / "foreign"
    directory.mkdir()
    directory.chmod(0o555)
    yield directory
    directory.chmod(0o755)


def test_the_right_to_write_anywhere_is_kept_for_others_directories(
    tmp_path: Path, foreign: Path
) -> None:
    assert "CAP_DAC_OVERRIDE" not in names(kept(files=(None, tmp_path / "sums")))
    assert "CAP_DAC_OVERRIDE" in names(kept(files=(tmp_path / "ready", foreign / "sums")))


def test_a_thread_that_kept_more_is_seen() -> None:
    """A library's own, which was there before."""
    if not rights.held():
        assert rights.threads_with_more(()) == []
        return
    thread = f"{threading.current_thread().native_id}"
    mine = Path(f"/proc/self/task/{thread}/comm").read_text().strip()
    assert mine in rights.threads_with_more(())
    everything = [each for each in range(64) if status()["CapPrm"] >> each & 1]
    assert rights.threads_with_more(everything) == []  # type: ignore[arg-type]


def test_nothing_is_gained_by_starting_a_program() -> None:
    """Root's programs have all rights, were it not for that."""

    def spawn() -> str:
        read, write = os.pipe()
        pid = os.posix_spawn(
            "/bin/grep",
            ["grep", "CapEff", "/proc/self/status"],
            os.environ,
            file_actions=[(os.POSIX_SPAWN_DUP2, write, 1)],
        )
        os.close(write)
        with os.fdopen(read) as file:
            said = file.read()
        os.waitpid(pid, 0)
        return said

    assert with_only((), spawn).split() == ["CapEff:", "0" * 16]

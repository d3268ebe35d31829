# SPDX-License-Identifier: Apache-2.0
"""What otelbpf needs, on machines made up for it: `check` and `run` say it by the same words."""

from __future__ import annotations

import errno
import os
import resource
from pathlib import Path

import pytest

from otelbpf.errors import KernelError
from otelbpf.host import rights
from otelbpf.host.rights import Capability
from otelbpf.kernel import check, libbpf, needs
from otelbpf.kernel.loaders import Loader
from otelbpf.kernel.needs import Need, programs_need_rights

UNLIMITED = resource.RLIM_INFINITY


def missing(*, optional: bool = False) -> Need:
    def require() -> None:
        raise KernelError("there is no moon: at least not here", "wait for the night: or not")

    return Need("moon", "it shines", require, optional)


def stub(monkeypatch: pytest.MonkeyPatch, *made_up: Need) -> None:
    for module in (needs, check):
        monkeypatch.setattr(module, "needs", lambda *_, **__: made_up)


def test_the_first_thing_that_is_missing_is_what_run_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """And check too, in the same words, colons and all."""
    stub(monkeypatch, Need("sun", "it shines", lambda: None), missing())
    with pytest.raises(KernelError) as raised:
        needs.require(Loader.AUTO)
    report = check.examine((), None)
    sun, moon, *_ = report.findings
    assert (sun.ok, sun.detail) == (True, "it shines")
    assert (moon.ok, f"{moon.detail}: {moon.remedy}") == (False, str(raised.value))
    assert not report.can_run
    assert "  MISSING  moon: there is no moon: at least not here\n" in str(report)
    assert "           -> wait for the night: or not\n" in str(report)


def test_what_is_optional_keeps_nobody_from_running(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, missing(optional=True))
    (limited,) = needs.require(Loader.AUTO)
    assert limited.what == "there is no moon: at least not here"
    report = check.examine((), None)
    assert (report.findings[0].ok, report.findings[0].optional) == (False, True)
    assert "  limited  moon: " in str(report)


def named(name: str) -> Need:
    (found,) = (each for each in needs.needs(Loader.AUTO) if each.name == name)
    return found


def refusal(name: str) -> KernelError:
    with pytest.raises(KernelError) as raised:
        named(name).require()
    return raised.value


@pytest.mark.parametrize(("content", "is_refused"), [("1\n", True), ("0\n", False), (None, False)])
def test_a_realtime_kernel(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str | None, is_refused: bool
) -> None:
    path = tmp_path / "realtime"
    monkeypatch.setattr(needs, "REALTIME", path)
    if content is not None:
        path.write_text(content)
    if is_refused:
        assert "PREEMPT_RT" in refusal("preemption").what
    else:
        named("preemption").require()


def test_another_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    made_up = os.uname_result(("Linux", "host", "6.12.1", "#1", "aarch64"))
    monkeypatch.setattr(os, "uname", lambda: made_up)
    assert "aarch64" in refusal("processor").what


def test_no_proc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(needs, "PROC", tmp_path)
    assert f"mount -t proc proc {tmp_path}" in refusal("/proc").remedy
    (tmp_path / "self").mkdir()
    (tmp_path / "self/status").touch()
    assert "kallsyms" in refusal("/proc").what


@pytest.mark.parametrize(
    ("namespace", "numbers", "is_refused"),
    [
        (4026531836, "7", False),  # the host's
        (4026532323, "7", True),
        (4026532323, "9172\t7", False),  # and the /proc of the host
        (None, "7", False),
    ],
)
def test_processes_by_other_numbers_than_the_kernels(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    namespace: int | None,
    numbers: str,
    is_refused: bool,
) -> None:
    monkeypatch.setattr(needs, "PROC", tmp_path)
    (tmp_path / "self/ns").mkdir(parents=True)
    (tmp_path / "self/status").write_text(f"Name:\totelbpf\nNSpid:\t{numbers}\nThreads:\t1\n")
    if namespace is not None:
        (tmp_path / "self/ns/pid").symlink_to(f"pid:[{namespace}]")
    if is_refused:
        assert "`hostPID: true`" in refusal("process numbers").remedy
    else:
        named("process numbers").require()
    assert named("process numbers").optional


@pytest.mark.parametrize("held", [set(), {Capability.CAP_NET_ADMIN}, set(Capability)])
def test_what_is_kept_was_had(monkeypatch: pytest.MonkeyPatch, held: set[Capability]) -> None:
    stub(monkeypatch, Need("sun", "it shines", lambda: None))
    monkeypatch.setattr(check, "programs_need_rights", lambda: True)
    monkeypatch.setattr(rights, "held", lambda: frozenset(held))
    report = check.examine((), None)
    kept = {right.capability for right in report.keeps}
    assert kept <= held
    assert (Capability.CAP_NET_ADMIN in kept) == (Capability.CAP_NET_ADMIN in held)
    assert ("gives up all rights but" in str(report)) == bool(held)


@pytest.mark.parametrize(
    ("soft", "hard", "raised_to"),
    [(UNLIMITED, UNLIMITED, None), (256, 256, None), (64, 4096, 256), (64, UNLIMITED, 256)],
)
def test_limits_are_raised_as_far_as_may_be(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, raised_to: int | None
) -> None:
    raised: list[tuple[int, tuple[int, int]]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda *limit: raised.append(limit))
    named("limit of open files").require()
    assert raised == [(resource.RLIMIT_NOFILE, (raised_to, hard))] * (raised_to is not None)


@pytest.mark.parametrize(
    ("what", "hint"),
    [
        ("open files", "`ulimit -n 256`"),
        ("address space in KiB", "`ulimit -v "),
        ("data in KiB", "`ulimit -d "),
        ("stack in KiB", "`ulimit -s 1024`"),
    ],
)
def test_limits_that_may_not_be_raised(
    monkeypatch: pytest.MonkeyPatch, what: str, hint: str
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2048, 3072) if what[0] != "o" else (9, 9))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: pytest.fail("raised"))
    error = refusal(f"limit of {what}")
    assert f"{what} is {9 if what[0] == 'o' else 3}," in error.what
    assert hint in error.remedy


class Kernel:
    """One that takes programs, or says why not; and that runs them, or asks for a right.

    Args:
        reading: why it takes none that reads its memory.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        loading: int = 0,
        running: int = 0,
        reading: int = 0,
    ) -> None:
        self._loading, self._running, self._reading = loading, running, reading
        monkeypatch.setattr(libbpf, "load_program", self._load)
        monkeypatch.setattr(libbpf, "run_once", self._run)

    def _load(self, _name: str, instructions: bytes, _type: int) -> int:
        reads = instructions == libbpf.READ_KERNEL
        refusal = self._loading or (self._reading if reads else 0)
        if refusal:
            raise libbpf.VerifierError(refusal, "")
        return os.open(os.devnull, os.O_RDONLY)

    def _run(self, *_: object, **__: object) -> None:
        assert rights.held() == frozenset()
        if self._running:
            raise OSError(self._running, os.strerror(self._running))


@pytest.mark.parametrize(("running", "needed"), [(0, False), (errno.EPERM, True)])
def test_whether_running_a_program_takes_a_right(
    monkeypatch: pytest.MonkeyPatch, running: int, needed: bool
) -> None:
    """As it does on kernels before 5.19 that let only the privileged call bpf()."""
    Kernel(monkeypatch, running=running)
    assert programs_need_rights() is needed


def test_a_kernel_that_takes_no_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    Kernel(monkeypatch, loading=errno.EPERM)
    monkeypatch.setattr(rights, "held", lambda: frozenset(Capability))
    error = refusal("bpf()")
    assert "takes no BPF program" in error.what
    assert "seccomp" in error.remedy


def test_a_process_that_may_load_none_is_told_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Kernel(monkeypatch, loading=errno.EPERM)
    monkeypatch.setattr(rights, "held", frozenset)
    assert refusal("bpf()").args == refusal("rights").args


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ("none integrity [confidentiality]\n", "its lockdown is 'confidentiality' ("),
        (None, "lockdown cannot be read)"),
    ],
)
def test_a_kernel_that_is_locked_down(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: str | None, words: str
) -> None:
    Kernel(monkeypatch, reading=errno.EINVAL)
    monkeypatch.setattr(needs, "LOCKDOWN", path := tmp_path / "lockdown")
    if told is not None:
        path.write_text(told)
    error = refusal("kernel's memory")
    assert words in error.what
    assert "lockdown=confidentiality" in error.remedy


def test_a_kernel_that_takes_no_programs_is_not_thought_to_be_locked_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Kernel(monkeypatch, loading=errno.EPERM)
    monkeypatch.setattr(rights, "held", lambda: frozenset(Capability))
    assert refusal("kernel's memory").args == refusal("bpf()").args


def test_what_is_missing_once_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, missing(), Need("sun", "it shines", lambda: None), missing())
    report = check.examine((), None)
    assert [each.name for each in report.findings[:2]] == ["moon", "sun"]
    assert str(report).count("there is no moon") == 1

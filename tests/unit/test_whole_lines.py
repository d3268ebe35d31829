# SPDX-License-Identifier: Apache-2.0
"""Files of whole lines only: full disks, killed writers, and others that write there, too."""

from __future__ import annotations

import fcntl
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from otelbpf.errors import UsageError
from otelbpf.export import whole_lines
from otelbpf.export.answers import Answer, Verdict
from otelbpf.export.whole_lines import WholeLines, open_lines

TAKEN = Answer(Verdict.TAKEN)
DEADLINE_S = 30.0


def line(number: int, length: int = 100) -> bytes:
    """A line as otlp_json_file writes it."""
    begin, end = f'{{"resourceSpans":[],"number":{number},"rest":"', '"}'
    return (begin + "x" * (length - len(begin + end)) + end).encode() + b"\n"


def numbers(path: Path) -> list[int]:
    """What the file holds: whole lines, all of them."""
    text = path.read_bytes()
    assert text == b"" or text.endswith(b"\n")
    return [json.loads(each)["number"] for each in text.splitlines() if each]


def open_here(path: Path) -> WholeLines:
    return open_lines(str(path))


def test_lines_are_appended(tmp_path: Path) -> None:
    (path := tmp_path / "spans").write_bytes(line(1))
    lines = open_here(path)
    assert lines.send(line(2), 1.0) == TAKEN
    assert lines.send(line(3) + line(4), 1.0) == TAKEN
    assert open_here(path).send(line(5), 1.0) == TAKEN
    assert numbers(path) == [1, 2, 3, 4, 5]


#: Writes lines of 100 bytes to a file that may have no more than 1,050, and then to one that may.
FULL = """
import json, resource, sys
from otelbpf.export.whole_lines import WholeLines, open_lines
sys.path[:0] = [sys.argv[1]]
from test_whole_lines import line
lines = open_lines(sys.argv[2]) if sys.argv[2] else WholeLines(1, "standard output")
resource.setrlimit(resource.RLIMIT_FSIZE, (1_050, resource.RLIM_INFINITY))
answers = [lines.send(line(number), 1.0) for number in range(30)]
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
answers += [lines.send(line(number), 1.0) for number in range(30, 40)]
print(json.dumps([[answer.verdict, answer.reason] for answer in answers]), file=sys.stderr)
"""


@pytest.mark.parametrize("how", ["--output", ">", ">>"])
def test_a_file_that_may_grow_no_more_for_a_while(how: str, tmp_path: Path) -> None:
    """A part of the eleventh line fits: it is taken back, so the next one that fits is whole."""
    path = tmp_path / "spans"
    with path.open("ab" if how == ">>" else "wb") as output:
        if how == "--output":
            output.close()
        ended = subprocess.run(
            [sys.executable, "-c", FULL, Path(__file__).parent, path if how == "--output" else ""],
            stdout=subprocess.DEVNULL if output.closed else output, stderr=subprocess.PIPE,
            check=True,
        )  # fmt: skip
    answers = json.loads(ended.stderr)
    assert answers == (
        [["taken", ""]] * 10 + [["later", "File too large"]] * 20 + [["taken", ""]] * 10
    )
    assert numbers(path) == [*range(10), *range(30, 40)]


def test_a_device_that_is_full() -> None:
    lines = open_lines("/dev/full")
    assert lines.send(line(1), 1.0) == Answer(Verdict.LATER, "No space left on device")


def test_a_pipe_that_nobody_reads_any_more() -> None:
    """It will not be read another time."""
    reading, writing = os.pipe()
    os.close(reading)
    assert WholeLines(writing, "a pipe").send(line(1), 1.0) == Answer(
        Verdict.REFUSED, "Broken pipe"
    )
    os.close(writing)


def test_a_pipe_that_does_not_block_is_waited_for() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    lines, long = WholeLines(writing, "a pipe"), line(1, 1 << 20)
    answers: list[Answer] = []
    thread = threading.Thread(target=lambda: answers.append(lines.send(long, 1.0)))
    thread.start()
    came = b""
    while len(came) < len(long):
        came += os.read(reading, 1 << 16)
    thread.join(DEADLINE_S)
    assert (came, answers) == (long, [TAKEN])
    os.close(reading)
    os.close(writing)


def test_a_line_that_breaks_off_in_a_pipe_is_ended_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What has left cannot be taken back."""
    reading, writing = os.pipe()
    lines = WholeLines(writing, "a pipe")
    write = os.write

    def half(fd: int, octets: bytes) -> int:
        monkeypatch.setattr(os, "write", fails)
        return write(fd, octets[:10])

    def fails(fd: int, octets: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "write", half)
    assert lines.send(line(1), 1.0) == Answer(Verdict.LATER, "Input/output error")
    assert lines.send(line(2), 1.0) == TAKEN
    assert lines.send(line(3), 1.0) == TAKEN
    assert os.read(reading, 1_000) == line(1)[:10] + b"\n" + line(2) + line(3)
    os.close(reading)
    os.close(writing)


def test_what_others_have_written_since_is_not_taken_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "spans"
    lines = open_here(path)
    write = os.write

    def half(fd: int, octets: bytes) -> int:
        monkeypatch.setattr(os, "write", fails)
        return write(fd, octets[:10])

    def fails(fd: int, octets: bytes) -> int:
        monkeypatch.setattr(os, "write", write)
        with path.open("ab") as other:
            other.write(b"\n" + line(7))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half)
    assert lines.send(line(1), 1.0).verdict is Verdict.LATER
    assert lines.send(line(2), 1.0) == TAKEN
    assert path.read_bytes() == line(1)[:10] + b"\n" + line(7) + b"\n" + line(2)


@pytest.mark.parametrize("kept", range(1, 101))
def test_what_a_killed_writer_has_left_is_healed(
    kept: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever byte was its last. A whole line that lacks its end only is kept."""
    (path := tmp_path / "spans").write_bytes(line(1) + line(2) + line(3)[:kept])
    assert open_here(path).send(line(4), 1.0) == TAKEN
    is_whole = kept == 100
    assert numbers(path) == ([1, 2, 3, 4] if is_whole else [1, 2, 4])
    assert caplog.messages == ([] if is_whole else [
        f"{path} ended in the middle of a line, as its writer was killed: these {kept} bytes are "
        "removed"
    ])  # fmt: skip


@pytest.mark.parametrize("length", [1 << 20, (1 << 20) - 1, (2 << 20) + 17])
def test_a_long_line_that_is_torn(length: int, tmp_path: Path) -> None:
    """Longer than what is looked at at once; alone, and behind another."""
    torn = b'{"resourceSpans":["' + b"x" * length
    for name, before in (("alone", b""), ("behind", line(1))):
        (path := tmp_path / name).write_bytes(before + torn)
        assert open_here(path).send(line(2), 1.0) == TAKEN
        assert path.read_bytes() == before + line(2)


@pytest.mark.parametrize(
    "tail", [b"some words", b"[1, 2", b'{"mine": ', bytes(500), b'{"resources":1}']
)
def test_what_is_not_ours_is_not_removed(
    tail: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file may have been named by mistake."""
    (path := tmp_path / "spans").write_bytes(line(1) + tail)
    assert open_here(path).send(line(2), 1.0) == TAKEN
    assert path.read_bytes() == line(1) + tail + b"\n" + line(2)
    assert caplog.messages == []


def test_a_file_without_a_line_end_is_looked_through_in_part_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whole_lines, "_LONGEST_TAIL", 3 << 20)
    (path := tmp_path / "spans").write_bytes(bytes(5 << 20))
    assert open_here(path).send(line(2), 1.0) == TAKEN
    assert path.read_bytes() == bytes(5 << 20) + b"\n" + line(2)


def test_a_line_that_another_writes_just_now_is_left_alone(tmp_path: Path) -> None:
    """For as long as that one lives."""
    path = tmp_path / "spans"
    first = open_here(path)
    with path.open("ab") as in_the_middle:
        in_the_middle.write(line(1)[:50])
    second = open_here(path)
    with path.open("ab") as in_the_middle:
        in_the_middle.write(line(1)[50:])
    assert second.send(line(2), 1.0) == TAKEN
    assert first.send(line(3), 1.0) == TAKEN
    assert numbers(path) == [1, 2, 3]


def test_and_for_as_long_as_any_other_lives(tmp_path: Path) -> None:
    """The one that came first may have ended."""
    path = tmp_path / "spans"
    first, second = open_here(path), open_here(path)
    os.close(first._fd)
    with path.open("ab") as in_the_middle:
        in_the_middle.write(line(1)[:50])
    third = open_here(path)
    with path.open("ab") as in_the_middle:
        in_the_middle.write(line(1)[50:])
    assert third.send(line(2), 1.0) == TAKEN
    assert second.send(line(3), 1.0) == TAKEN
    assert numbers(path) == [1, 2, 3]


def test_a_file_that_cannot_be_locked_is_not_healed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    (path := tmp_path / "spans").write_bytes(line(1)[:50])
    assert open_here(path).send(line(2), 1.0) == TAKEN
    assert path.read_bytes() == line(1)[:50] + line(2)


#: Writes lines of 4 MB for ever, and tells of each that is taken.
WRITER = """
import os, sys
sys.path[:0] = [sys.argv[1]]
from otelbpf.export.whole_lines import open_lines
from test_whole_lines import TAKEN, line
lines, number = open_lines(sys.argv[2]), int(sys.argv[3])
while True:
    assert lines.send(line(number, 4 << 20), 1.0) == TAKEN
    os.write(1, b"%d\\n" % number)
    number += 1
"""


def test_writers_that_are_killed(tmp_path: Path) -> None:
    """Wherever it hits them: at most the last line is torn (of 12 some 5), and the file heals."""
    for life in range(12):
        path, first = tmp_path / str(life), 100 * life
        command = [sys.executable, "-c", WRITER, Path(__file__).parent, path, str(first)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
            assert writer.stdout is not None
            assert writer.stdout.readline() == b"%d\n" % first
            time.sleep(random.uniform(0, 0.01))
            writer.send_signal(signal.SIGKILL)
            rest = writer.stdout.read()
        taken = [first, *map(int, rest.split())]
        text = path.read_bytes()
        whole = text.rpartition(b"\n")[0]
        written = [json.loads(each)["number"] for each in whole.split(b"\n")]
        # The last one may be there though its writer did not come to say so.
        assert written in (taken, [*taken, taken[-1] + 1])
        open_here(path)
        assert numbers(path)[: len(written)] == written


def test_standard_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number may be another file's by now."""
    whole_lines.standard_output.cache_clear()
    monkeypatch.setattr(sys, "__stdout__", None)
    with pytest.raises(UsageError, match=r"^standard output is closed"):
        whole_lines.standard_output()


@pytest.mark.parametrize("how", ["rename", "copytruncate"])
def test_rotation(how: str, tmp_path: Path) -> None:
    """What docs/reliability.md says of it: it appends to the file that it has opened."""
    path, rotated = tmp_path / "spans.jsonl", tmp_path / "spans.jsonl.1"
    lines = open_lines(str(path))
    lines.send(b"one\n", 1.0)
    if how == "rename":
        path.rename(rotated)
        lines.send(b"two\n", 1.0)
        assert (path.exists(), rotated.read_bytes()) == (False, b"one\ntwo\n")
    else:
        rotated.write_bytes(path.read_bytes())
        os.truncate(path, 0)
        lines.send(b"two\n", 1.0)
        assert (rotated.read_bytes(), path.read_bytes()) == (b"one\n", b"two\n")

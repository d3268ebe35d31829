# SPDX-License-Identifier: Apache-2.0
"""Reading BTF, and the generated records that come of it. Needs clang."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from otelbpf.errors import KernelError
from otelbpf.kernel.btf import Btf, Field
from otelbpf.kernel.records import (
    EXCHANGE,
    HTTP1,
    JOIN,
    REQUEST_RECORD,
    Counter,
    RequestFlag,
    Stamp,
)

pytestmark = pytest.mark.impure

ROOT = Path(__file__).resolve().parents[2]
SOURCE = """
struct inner { int a; unsigned short b[3]; };
struct outer {
    const volatile unsigned long long first;
    union { struct { int deep; struct inner named; }; long other; };
    char text[5];
    struct inner rows[2];
};
enum colour { RED = 3, GREEN = -1 };
typedef void (*btf_trace_made_up)(void *);
__attribute__((noinline)) int called(int x) { return x + 1; }
struct outer used_outer; enum colour used_colour; btf_trace_made_up used_trace;
int entry(int x) { return called(x); }
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("btf")
    (directory / "types.c").write_text(SOURCE)
    command = ["clang", "-target", "bpf", "-g", "-O1", "-c", "types.c", "-o", "types.o"]
    subprocess.run(command, cwd=directory, check=True)
    return directory / "types.o"


def generate_records(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(root / "scripts/generate-records"), *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_records_are_what_the_generator_writes() -> None:
    done = generate_records(ROOT, "--check")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """What the generator needs of the checkout, to be changed."""
    (tmp_path / "src").mkdir()
    for directory in ("bpf", "src/otelbpf", "scripts"):
        shutil.copytree(
            ROOT / directory, tmp_path / directory, ignore=shutil.ignore_patterns("__pycache__")
        )
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("__u32 pid;", "__u64 reader;\n\t__u32 pid;"),
        ("#define HOST_MAX 64", "#define HOST_MAX 72"),
        ("STAMP_COUNT = 18,", "STAMP_EXTRA = 18,\n\tSTAMP_COUNT = 18,"),
        ("REQUEST_CHUNKED = 4,", "REQUEST_CHUNKED = 8192,"),
    ],
)
def test_a_changed_header_is_noticed_and_written(copy: Path, before: str, after: str) -> None:
    header = copy / "bpf/abi/records.h"
    text = header.read_text()
    assert text.count(before) == 1
    header.write_text(text.replace(before, after))
    done = generate_records(copy, "--check")
    assert done.returncode == 1
    records = "src/otelbpf/kernel/records.py"
    assert done.stdout == f"{records} is not what scripts/generate-records writes\n"
    assert generate_records(copy).returncode == 0
    assert generate_records(copy, "--check").returncode == 0
    assert (copy / "src/otelbpf/kernel/records.py").read_text() != (
        ROOT / "src/otelbpf/kernel/records.py"
    ).read_text()


def test_hidden_padding_is_refused(copy: Path) -> None:
    header = copy / "bpf/abi/records.h"
    header.write_text(header.read_text().replace("__u32 tid;", "__u16 tid;"))
    done = generate_records(copy, "--check")
    assert done.returncode != 0
    assert "-Wpadded" in done.stderr


def test_records_have_no_holes() -> None:
    for dtype in (JOIN, HTTP1, REQUEST_RECORD, EXCHANGE):
        end = 0
        for name in dtype.names:
            field, offset = dtype.fields[name][:2]
            assert offset == end, name
            end = offset + field.itemsize
        assert end == dtype.itemsize
        assert dtype.itemsize % 8 == 0


def test_enums_are_dense_or_single_bits() -> None:
    assert [s.value for s in Stamp] == list(range(REQUEST_RECORD["stamp_ktime_ns"].shape[0]))
    assert [c.value for c in Counter] == list(range(len(Counter)))
    assert [f.value for f in RequestFlag] == [1 << i for i in range(len(RequestFlag))]


def test_addresses_keep_their_zero_bytes() -> None:
    made = np.zeros(1, REQUEST_RECORD)
    assert len(made["peer_address"][0].tobytes()) == 16
    assert bytes(made["http1"]["host"][0]) == b""


def test_fields_in_order(compiled: Path) -> None:
    with Btf.of_object(compiled) as btf:
        assert btf.fields_of("inner") == [
            Field("a", 0, 4, None, None, True),
            Field("b", 4, 2, 3, None, False),
        ]
        outer = btf.fields_of("outer")
        assert outer[0] == Field("first", 0, 8, None, None, False)
        assert outer[2:] == [
            Field("text", 24, 1, 5, None, True),
            Field("rows", 32, 12, 2, "inner", False),
        ]
        assert btf.size_of("outer") == 56


@pytest.mark.parametrize(
    ("path", "offset"),
    [
        ("first", 0),
        ("deep", 8),
        ("other", 8),
        ("named", 12),
        ("named.b", 16),
        ("text", 24),
        ("named.c", None),
        ("nothing", None),
    ],
)
def test_offsets_look_through_what_has_no_name(
    compiled: Path, path: str, offset: int | None
) -> None:
    with Btf.of_object(compiled) as btf:
        assert btf.offset_of("outer", path) == offset
        assert btf.offset_of("no_such_struct", path) is None


def test_enum_values_may_be_negative(compiled: Path) -> None:
    with Btf.of_object(compiled) as btf:
        assert btf.values_of("colour") == {"RED": 3, "GREEN": -1}


def test_functions_and_tracepoints(compiled: Path) -> None:
    with Btf.of_object(compiled) as btf:
        assert btf.has_function("called")
        assert not btf.has_function("outer")  # a struct is no function
        assert btf.has_tracepoint("made_up")
        assert not btf.has_tracepoint("btf_trace_made_up")


def test_what_is_not_there_is_an_error(compiled: Path, tmp_path: Path) -> None:
    with Btf.of_object(compiled) as btf:
        for ask in (btf.fields_of, btf.size_of):
            with pytest.raises(KernelError, match=r"no struct nothing in this BTF"):
                ask("nothing")
        with pytest.raises(KernelError, match=r"no enum nothing in this BTF"):
            btf.values_of("nothing")
    with pytest.raises(KernelError, match=r"cannot read BTF from .*missing.o: compile it with"):
        Btf.of_object(tmp_path / "missing.o")


def test_a_kernel_without_btf(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("otelbpf.kernel.btf.VMLINUX_BTF", tmp_path / "vmlinux")
    with pytest.raises(KernelError, match=r"has no BTF .*CONFIG_DEBUG_INFO_BTF=y"):
        Btf.of_kernel()


def test_what_functions_and_tracepoints_pass_on(tmp_path: Path) -> None:
    (tmp_path / "types.c").write_text("""
struct one { int a; }; typedef struct one alias;
typedef void (*btf_trace_made_up)(void *, const struct one *, int, alias *);
__attribute__((noinline)) int called(const alias *x, int y, void *z) { return x->a + y + !z; }
btf_trace_made_up used;
int entry(struct one *x) { return called(x, 1, x); }
""")
    command = ["clang", "-target", "bpf", "-g", "-O1", "-c", "types.c", "-o", "types.o"]
    subprocess.run(command, cwd=tmp_path, check=True)
    with Btf.of_object(tmp_path / "types.o") as btf:
        assert btf.function_arguments("called") == ("one", "", "")
        assert btf.tracepoint_arguments("made_up") == ("one", "", "one")
        assert btf.function_id("called") != btf.function_id("entry")
        for missing in (btf.function_id, btf.tracepoint_id):
            with pytest.raises(KeyError):
                missing("nowhere")

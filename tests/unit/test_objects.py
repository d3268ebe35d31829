# SPDX-License-Identifier: Apache-2.0
"""The ready-made programs are those of bpf/, and what they take of the kernel is what it has."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import itertools
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from support.loops import functions_of, refused_loops

from otelbpf.errors import RefusedError
from otelbpf.kernel import objects
from otelbpf.kernel.arrays import sizes
from otelbpf.kernel.bpf_object import maps_of, opened
from otelbpf.kernel.libbpf import kernel_name
from otelbpf.kernel.limits import DEFAULT
from otelbpf.kernel.loads import Load
from otelbpf.kernel.objects import object_path
from otelbpf.kernel.records import MAPS
from otelbpf.kernel.sources import bpf_directory

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def build_objects() -> ModuleType:
    """scripts/build-objects, as a module."""
    loader = importlib.machinery.SourceFileLoader("build_objects", f"{ROOT}/scripts/build-objects")
    spec = importlib.util.spec_from_loader("build_objects", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def test_it_was_made_of_these_sources(build_objects: ModuleType) -> None:
    """If not: scripts/build-objects."""
    made_of = json.loads(object_path().with_suffix(".json").read_text())
    del made_of["object"]
    assert made_of == build_objects.manifest()


# 0: r0 = 0; 1: r0 += 1; 2: if r0 < 9 goto 1; 3: exit
JUMPS_BACK = "b700000000000000 0700000001000000 a500feff09000000 9500000000000000"
# 0: goto 2; 1: r0 += 1; 2: if r0 > 9 goto 4; 3: goto 1; 4: exit
RUNS_ON = "0500010000000000 0700000001000000 2500010009000000 0500fdff00000000 9500000000000000"


@pytest.mark.parametrize(("code", "refused"), [(JUMPS_BACK, []), (RUNS_ON, [(1, 2)])])
def test_a_loop_that_runs_on_into_its_beginning_is_seen(
    code: str, refused: list[tuple[int, int]]
) -> None:
    assert refused_loops(bytes.fromhex(code)) == refused


def test_6_1_takes_its_loops() -> None:
    functions = functions_of(object_path())
    assert {"tc_ingress", "read_length"} <= functions.keys()
    assert not {name: found for name, code in functions.items() if (found := refused_loops(code))}


def put(directory: Path, octets: bytes) -> Path:
    """An object in there, beside what this one's is said to be."""
    path = directory / object_path().name
    path.write_bytes(octets)
    manifest = object_path().with_suffix(".json").read_text()
    path.with_suffix(".json").write_text(manifest)
    return path


@pytest.mark.parametrize("spoil", [lambda o: b"", lambda o: o[: len(o) // 2], lambda o: o + b"\0"])
def test_another_one_in_its_place_is_told(
    spoil: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    octets = object_path().read_bytes()
    path = put(tmp_path, octets)
    monkeypatch.setattr(objects, "object_path", lambda: path)
    assert objects.why_unusable() == ""
    put(tmp_path, spoil(octets))
    assert objects.why_unusable() == (
        f"{path.name} is not the one that this version came with, which installing otelbpf again "
        "mends"
    )
    path.unlink()
    assert objects.why_unusable() == f"there is no {path.name}"
    path.mkdir()
    assert objects.why_unusable() == f"{path.name} cannot be read (Is a directory)"


@pytest.mark.parametrize("told", [b"", b"{", b"[]", b"{}", b"7", b"\xff"])
def test_what_is_said_of_it_may_be_damaged(
    told: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = put(tmp_path, object_path().read_bytes())
    monkeypatch.setattr(objects, "object_path", lambda: path)
    path.with_suffix(".json").write_bytes(told)
    assert "is not the one that this version came with" in objects.why_unusable()


def test_the_compiler_makes_it(build_objects: ModuleType, tmp_path: Path) -> None:
    if not build_objects.has_compiler():
        pytest.skip(f"no {build_objects.CLANG} {build_objects.VERSION} with {build_objects.STRIP}")
    assert build_objects.build() == object_path().read_bytes()


def test_it_has_the_maps_that_are_made_for_it() -> None:
    assert maps_of(object_path().read_bytes()) == MAPS


def test_the_work_is_shared_out() -> None:
    """Nobody has more than the most dear program beside what is even; and each is loaded once."""
    loads = [Load(name) for name in (*objects._WORK, "sweep", "traced_tcp")]
    for workers in range(1, 5):
        shares = objects._shared(loads, workers)
        assert sorted(map(str, itertools.chain(*shares))) == sorted(map(str, loads))
        works = [sum(map(objects._work, share)) for share in shares]
        assert max(works) - min(works) <= max(map(objects._work, loads)) / 2
    assert objects._shared(loads[:2], 4) == [[loads[0]], [loads[1]]]


def test_whose_work_is_known_is_there() -> None:
    with opened(object_path().read_bytes()) as one:
        assert set(objects._WORK) <= set(one._programs)


def test_the_kernel_keeps_enough_of_each_name() -> None:
    """It cuts them; whoever looks at what is loaded still knows one from the other."""
    with opened(object_path().read_bytes()) as one:
        programs = list(one._programs)
    maps = [*MAPS, *sizes(DEFAULT)]
    for names in (programs, maps):
        cut = sorted(map(kernel_name, names))
        assert any(name not in names for name in cut)
        assert [name for name, other in itertools.pairwise(cut) if name == other] == []


@pytest.mark.parametrize("octets", [b"", b"no object", bytes(4_096)])
def test_what_is_no_object_is_refused(octets: bytes) -> None:
    with pytest.raises(RefusedError, match=r"libbpf cannot read .*\(\D+\): take a newer libbpf1"):
        maps_of(octets)


def test_the_verifier_can_quote_its_lines() -> None:
    """What stands where a program begins is in it, beside where that is."""
    octets = object_path().read_bytes()
    lines = (bpf_directory() / "hooks/tc.c").read_text().splitlines()
    (line,) = (each for each in lines if " tc_egress(" in each)
    assert line.encode() + b"\0" in octets
    assert b"hooks/tc.c\0" in octets


def test_no_path_of_who_made_it_is_in_it() -> None:
    octets = object_path().read_bytes()
    assert re.findall(rb"[\w./-]*/(?:home|root|tmp|work|usr)/[\w./-]*", octets) == []


@pytest.mark.impure
def test_the_interface_is_the_kernels(tmp_path: Path) -> None:
    """bpf/kernel/uapi.h against linux/bpf.h of this machine."""
    ours = (bpf_directory() / "kernel/uapi.h").read_text()
    values = re.findall(r"^\t(BPF_\w+) = (\d+),$", ours, re.MULTILINE)
    assert len(values) == 31
    structs = re.findall(r"^struct (\w+) {\n(.*?)^};", ours, re.MULTILINE | re.DOTALL)
    fields = [
        (struct, field)
        for struct, body in structs
        for field in re.findall(r"^\t[^\t].*?(\w+)(?:\[\d+\])?;$", body, re.MULTILINE)
        if not field.startswith("unused")
    ]
    assert len(fields) > 15
    told = "".join(f"T({name})\n" for name, _ in values)
    told += "".join(f"O({struct}, {field})\n" for struct, field in fields)
    source = """
        #define T(name) _Static_assert(name == EXPECTED_##name, #name);
        #define O(s, f) char offset_of_##s##_##f[1 + __builtin_offsetof(struct s, f)];
    """
    theirs = tmp_path / "theirs.c"
    theirs.write_text("#include <linux/bpf.h>\n" + source + told)
    mine = tmp_path / "mine.c"
    mine.write_text('#include "kernel/uapi.h"\n' + source + told)
    expected = [f"-DEXPECTED_{name}={value}" for name, value in values]
    flags = (bpf_directory() / "compile_flags.txt").read_text().split()
    sizes = []
    for path, options in ((theirs, ["-target", "x86_64-linux-gnu"]), (mine, flags)):
        made = path.with_suffix(".o")
        command = ["clang", *options, *expected, "-c", path, "-o", made]
        subprocess.run(command, check=True, cwd=bpf_directory())
        table = subprocess.run(
            ["readelf", "--symbols", "--wide", made], capture_output=True, text=True, check=True
        ).stdout
        found = re.findall(r"(\d+) OBJECT .* (offset_of_\w+)$", table, re.MULTILINE)
        sizes.append({name: int(size) for size, name in found})
        assert len(sizes[-1]) == len(fields)
    assert sizes[0] == sizes[1]

# SPDX-License-Identifier: Apache-2.0
"""What is built from the checkout holds the C sources, finds them, and states its licences."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.tags import sys_tags
from support.wheels import build_wheel

from otelbpf.kernel.objects import object_path
from otelbpf.kernel.sources import bpf_directory
from otelbpf.version import __version__

ROOT = Path(__file__).resolve().parents[2]
C_SOURCES = sorted(path for path in (ROOT / "bpf").rglob("*.[ch]") if path.name != "vmlinux.h")
PYTHON_SOURCES = sorted((ROOT / "src").rglob("*.py"))


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command and return what it printed; fail with all of its output."""
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert result.returncode == 0, f"{command}:\n{result.stdout}{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


def test_the_wheel_holds_every_c_source(wheel: Path) -> None:
    assert C_SOURCES
    with zipfile.ZipFile(wheel) as archive:
        for path in C_SOURCES:
            packed = f"otelbpf/bpf/{path.relative_to(ROOT / 'bpf')}"
            assert archive.read(packed) == path.read_bytes(), packed


def test_the_wheel_holds_the_parts_of_the_reports_page(wheel: Path) -> None:
    parts = sorted((ROOT / "src/otelbpf/report/assets").iterdir())
    assert parts
    with zipfile.ZipFile(wheel) as archive:
        for path in parts:
            assert archive.read(f"otelbpf/report/assets/{path.name}") == path.read_bytes(), path


def test_the_wheel_holds_the_ready_made_programs(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = f"otelbpf/kernel/{object_path().name}"
        assert archive.read(packed) == object_path().read_bytes()


def test_the_wheel_is_named_after_the_machines_that_its_programs_are_for(wheel: Path) -> None:
    """pip takes it on those only. Of Pythons it takes any: nothing in it is compiled for one."""
    machine = object_path().stem.removeprefix("programs-")
    tag = f"py3-none-linux_{machine}"
    assert wheel.name == f"otelbpf-{__version__}-{tag}.whl"
    with zipfile.ZipFile(wheel) as archive:
        lines = archive.read(f"otelbpf-{__version__}.dist-info/WHEEL").decode().splitlines()
        programs = [name for name in archive.namelist() if name.endswith(".o")]
    assert {"Root-Is-Purelib: false", f"Tag: {tag}"} <= set(lines)
    assert programs == [f"otelbpf/kernel/{object_path().name}"]
    assert tag in set(map(str, sys_tags()))


@pytest.mark.impure  # its backend is fetched
def test_one_script_builds_it(wheel: Path, tmp_path: Path) -> None:
    said = run(ROOT / "scripts/build-wheel", tmp_path / "into", cwd=tmp_path)
    (made,) = (tmp_path / "into").iterdir()
    assert said == f"{made}\n"
    assert made.name == wheel.name


def test_the_wheel_says_that_it_is_typed(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert "otelbpf/py.typed" in archive.namelist()


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        top_level = {name.split("/")[0] for name in archive.namelist()}
        suffixes = {Path(name).suffix for name in archive.namelist() if "/bpf/" in name}
    assert top_level == {"otelbpf", f"otelbpf-{__version__}.dist-info"}
    assert suffixes <= {".c", ".h", ".txt", ""}  # no objects, nothing compiled


def test_the_wheel_names_its_command_and_licences(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        text = {
            Path(name).name: archive.read(name).decode()
            for name in archive.namelist()
            if ".dist-info/" in name
        }
    assert "otelbpf = otelbpf.cli:main" in text["entry_points.txt"].splitlines()
    assert "License-Expression: Apache-2.0" in text["METADATA"].splitlines()
    assert "Apache License" in text["LICENSE"]
    assert "GNU GENERAL PUBLIC LICENSE" in text["GPL-2.0-only.txt"]


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path, cwd=ROOT)
    (sdist,) = tmp_path.glob("otelbpf-*.tar.gz")
    shutil.unpack_archive(sdist, tmp_path)
    (unpacked,) = (path for path in tmp_path.iterdir() if path.is_dir())
    (into := tmp_path / "wheel").mkdir()
    with (
        zipfile.ZipFile(wheel) as ours,
        zipfile.ZipFile(build_wheel(unpacked, into)) as theirs,
    ):
        assert theirs.namelist() == ours.namelist()
        for name in ours.namelist():
            assert theirs.read(name) == ours.read(name), name


def test_sources_are_found_in_the_checkout() -> None:
    assert bpf_directory() == ROOT / "bpf"


def test_sources_are_found_in_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:  # this one is installed by unpacking it
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); "
        "from otelbpf.kernel.sources import bpf_directory; print(bpf_directory())"
    )
    assert run(sys.executable, "-c", program, cwd=tmp_path) == f"{tmp_path / 'otelbpf/bpf'}\n"


def test_missing_sources_are_explained(tmp_path: Path) -> None:
    (package := tmp_path / "src" / "otelbpf" / "kernel").mkdir(parents=True)
    source = (ROOT / "src" / "otelbpf" / "kernel" / "sources.py").read_text()
    namespace = {"__file__": str(package / "sources.py")}
    exec(compile(source, "sources.py", "exec"), namespace)
    with pytest.raises(FileNotFoundError, match=f"{tmp_path / 'bpf'} .* install otelbpf again"):
        namespace["bpf_directory"]()


@pytest.mark.parametrize("path", C_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_c_source_states_both_licences(path: Path) -> None:
    assert "SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0" in first_lines(path)


@pytest.mark.parametrize("path", PYTHON_SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_source_states_its_licence(path: Path) -> None:
    assert "# SPDX-License-Identifier: Apache-2.0" in first_lines(path).splitlines()


def first_lines(path: Path) -> str:
    """The lines where a licence is looked for; a script's comes after its interpreter."""
    return "\n".join(path.read_text().splitlines()[:2])

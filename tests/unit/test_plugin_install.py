# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry's own command finds the plugin; what is built of it holds all of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.wheels import build_wheel

PLUGIN = Path(__file__).resolve().parents[2] / "plugin"
COMMAND = Path(sys.executable).parent / "opentelemetry-instrument"
TELL = """
import sys
from opentelemetry import propagate
from opentelemetry.sdk.trace import Tracer
names = [type(each).__name__ for each in propagate.get_global_textmap()._propagators]
watch = sys.modules.get("otelbpf_plugin.watch")
print(names.count("OtelbpfPropagator"), len(names), hasattr(Tracer.start_span, "__wrapped__"),
      watch and watch.watch.nobody_until)  # 0.0: the first request asks; inf: none does
"""
BY_HAND = """
from otelbpf_plugin import OtelbpfInstrumentor
OtelbpfInstrumentor().instrument()
"""


def say(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=60,
        env={**os.environ, "OTEL_TRACES_EXPORTER": "none", "OTEL_METRICS_EXPORTER": "none",
             "OTEL_LOGS_EXPORTER": "none", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "otelbpf" not in done.stderr, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("environment", "expected"), [
    ({}, "1 3 False 0.0"),
    ({"OTEL_PROPAGATORS": "tracecontext,baggage,otelbpf"}, "1 3 False 0.0"),
    ({"OTEL_PROPAGATORS": "otelbpf"}, "1 1 False 0.0"),
    ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "otelbpf"}, "0 2 False None"),
], ids=["default", "named", "alone", "disabled"])  # fmt: skip
def test_under_opentelemetry_instrument(environment: dict[str, str], expected: str) -> None:
    assert say(COMMAND, sys.executable, "-c", TELL, **environment) == expected


def test_by_hand() -> None:
    assert say(sys.executable, "-c", BY_HAND + TELL) == "1 3 False 0.0"


def test_the_propagator_alone_marks_nothing() -> None:
    assert say(sys.executable, "-c", TELL, OTEL_PROPAGATORS="otelbpf") == "1 1 False inf"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: the backend writes beside the sources."""
    directory = tmp_path_factory.mktemp("plugin")
    source = directory / "plugin"
    ignored = shutil.ignore_patterns("*.egg-info", "build", "__pycache__")
    shutil.copytree(PLUGIN, source, ignore=ignored)
    program = f"from setuptools import build_meta; build_meta.build_sdist({str(directory)!r})"
    subprocess.run([sys.executable, "-c", program], cwd=source, check=True, timeout=120,
                   capture_output=True)  # fmt: skip
    (built,) = directory.glob("*.tar.gz")
    return built


def test_the_source_distribution_builds_a_wheel_for_any_machine(
    sdist: Path, tmp_path: Path
) -> None:
    shutil.unpack_archive(sdist, tmp_path)
    (source,) = tmp_path.iterdir()
    wheel = build_wheel(source, tmp_path)
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        text = {Path(name).name: archive.read(name).decode() for name in names}
    modules = {name for name in names if name.startswith("otelbpf_plugin/")}
    sources = PLUGIN / "src/otelbpf_plugin"
    assert modules == {f"otelbpf_plugin/{path.name}" for path in sources.iterdir()
                       if path.suffix in (".py", ".typed")}  # fmt: skip
    assert "otelbpf = otelbpf_plugin.instrumentor:OtelbpfInstrumentor" in text["entry_points.txt"]
    assert "otelbpf = otelbpf_plugin.propagator:OtelbpfPropagator" in text["entry_points.txt"]
    assert "Apache License" in text["LICENSE"]
    required = re.findall(r"^Requires-Dist: ([\w-]+)", text["METADATA"], re.MULTILINE)
    names = {"api", "sdk", "instrumentation"}
    assert set(required) == {*(f"opentelemetry-{name}" for name in names), "wrapt"}


@pytest.mark.parametrize("path", sorted(PLUGIN.rglob("src/**/*.py")), ids=lambda path: path.name)
def test_source_states_its_licence(path: Path) -> None:
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n")

# SPDX-License-Identifier: Apache-2.0
"""The distribution otelbpf-thread-context, as an application has it installed. Needs gcc."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from support.wheels import build_wheel

SOURCE = Path(__file__).resolve().parents[2] / "plugin/thread-context"


def install(directory: Path) -> Path:
    """Builds it, from a copy: the backend writes beside the sources.

    Args:
        directory: an empty one.
    Returns:
        Where it is installed, and nothing else.
    """
    copy, installed = directory / "source", directory / "installed"
    made = shutil.ignore_patterns("build", "*.egg-info", "__pycache__")
    shutil.copytree(SOURCE, copy, ignore=made)
    wheel = build_wheel(copy, directory)
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    return installed

# SPDX-License-Identifier: Apache-2.0
"""Names the wheel after the machines that its ready-made programs are for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

_OBJECTS = "src/otelbpf/kernel/programs-*.o"


class PlatformHook(BuildHookInterface):  # type: ignore[type-arg]
    """Any Python's wheel, for Linux on one processor.

    It is not manylinux, which promises a wheel that brings all it needs: libbpf is the
    distribution's. pip takes it on any Linux, and PyPI would not.
    """

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a wheel is built, with what hatchling knows of it."""
        (programs,) = Path(self.root).glob(_OBJECTS)
        machine = programs.stem.partition("-")[2]
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-linux_{machine}"

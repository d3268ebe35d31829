# SPDX-License-Identifier: Apache-2.0
"""The C sources of the BPF programs."""

from __future__ import annotations

import re
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parents[1]
_INCLUDE = re.compile(r'#include "(.*)"')
_ONCE = "#pragma once"


def bpf_directory() -> Path:
    """Find the directory of the BPF programs' C sources.

    Returns:
        `otelbpf/bpf` of an installed wheel, else `bpf` at the top of the checkout that this
        package is imported from (an editable installation). A real directory, because BCC's
        compiler reads headers from it.
    Raises:
        FileNotFoundError: neither is there.
    Source:
        [tool.hatch.build.targets.wheel], pyproject.toml.
    """
    installed = _PACKAGE / "bpf"
    if installed.is_dir():
        return installed
    checkout = _PACKAGE.parents[1]
    if (checkout / "pyproject.toml").is_file() and (checkout / "bpf").is_dir():
        return checkout / "bpf"
    raise FileNotFoundError(
        f"cannot find otelbpf's C sources: neither {installed} nor {checkout / 'bpf'} is a "
        "directory of otelbpf; install otelbpf again, from a wheel or with pip install --editable"
    )


def source_text() -> str:
    """All programs as one text, bpf/programs.c with each file that it includes in its place, once.

    BCC makes programs of what is in its main file only. Lines keep their origins.
    """
    directory = bpf_directory()
    included = set()

    def expanded(name: str) -> str:
        included.add(name)
        lines = [f'#line 1 "bpf/{name}"']
        for number, line in enumerate((directory / name).read_text().splitlines(), start=1):
            include = _INCLUDE.fullmatch(line)
            if include and include[1] not in included:
                lines += [expanded(include[1]), f'#line {number + 1} "bpf/{name}"']
            else:
                lines.append("" if include or line == _ONCE else line)
        return "\n".join(lines)

    return expanded("programs.c") + "\n"

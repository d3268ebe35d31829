# SPDX-License-Identifier: Apache-2.0
"""The one text that BCC compiles, put together from the includes of bpf/."""

from __future__ import annotations

import re
from collections.abc import Iterator

from otelbpf.kernel.records import MAPS
from otelbpf.kernel.sources import bpf_directory, source_text

ORIGIN = re.compile(r'#line (\d+) "bpf/(.*)"')


def lines_with_origins() -> Iterator[tuple[str, int, str]]:
    """(file, number, line) of all lines of the text, by its own account."""
    name, number = "", 0
    for line in source_text().splitlines():
        if origin := ORIGIN.fullmatch(line):
            number, name = int(origin[1]), origin[2]
        else:
            yield name, number, line
            number += 1


def test_each_line_is_where_the_text_says_that_it_is() -> None:
    files = {
        str(path.relative_to(bpf_directory())): path.read_text().splitlines()
        for path in bpf_directory().rglob("*.[ch]")
    }
    for name, number, line in lines_with_origins():
        original = files[name][number - 1]
        assert line == original or (line == "" and original.startswith(("#include", "#pragma")))


def test_each_file_is_in_the_text_once() -> None:
    starts = [name for name, number, _ in lines_with_origins() if number == 1]
    assert len(starts) == len(set(starts))
    shim = bpf_directory() / "shim"
    assert set(starts) == {
        str(path.relative_to(bpf_directory()))
        for path in bpf_directory().rglob("*.[ch]")
        if not path.is_relative_to(shim)
    }


def test_a_map_that_no_program_uses_is_not_made() -> None:
    text = source_text()
    for name in MAPS:
        assert re.search(rf"(?:LOOKUP|UPDATE|TAIL_CALL)\((?:\w+, )?{name}\b", text), name

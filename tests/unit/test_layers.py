# SPDX-License-Identifier: Apache-2.0
"""Each package imports only from those below it: it can be read without the others."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import otelbpf

PACKAGE = Path(otelbpf.__file__).parent
#: From the top down. What is in no package (errors, version) is below them all.
LAYERS = (
    "cli", "top", "agent", "export", "metrics", "report", "traces", "ledger", "policy", "userspace",
    "protocols", "kernel", "host",
)  # fmt: skip


def packages() -> set[str]:
    return {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


def imports(path: Path) -> Iterator[str]:
    """Modules of otelbpf that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("otelbpf."))
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == "otelbpf":
                yield from (f"otelbpf.{alias.name}" for alias in node.names)
            elif node.module.startswith("otelbpf."):
                yield node.module


def against(layers: tuple[str, ...]) -> list[str]:
    """Imports from a package that is above the one that imports."""
    rank = {name: place for place, name in enumerate(layers)}
    return [
        f"{path.relative_to(PACKAGE)} imports {module}"
        for name in layers
        for path in sorted((PACKAGE / name).rglob("*.py"))
        for module in imports(path)
        if rank.get(module.split(".")[1], len(rank)) < rank[name]
    ]


def test_all_packages_have_their_place() -> None:
    assert packages() == set(LAYERS)


def test_what_is_in_no_package_imports_none() -> None:
    below = [path for path in PACKAGE.glob("*.py") if path.name != "__main__.py"]
    assert {path.name: [*imports(path)] for path in below} == {path.name: [] for path in below}


def test_nothing_is_imported_from_above() -> None:
    assert against(LAYERS) == []


def test_it_would_be_seen() -> None:
    """The same the other way round is full of faults."""
    assert len(against(LAYERS[::-1])) > 100

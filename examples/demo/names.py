# SPDX-License-Identifier: Apache-2.0
"""What a demo leaves on the machine while it runs bears its process id.

So two demos do not meet, and the next one sees what a killed one could not remove.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIX = "otelbpf-demo"
RUN_DIRECTORY = Path("/run")


def name_of(role: str) -> str:
    """The name for one of this demo's things."""
    return f"{PREFIX}-{os.getpid()}-{role}"


def leftovers(directory: Path, *roles: str) -> list[Path]:
    """What demos whose process is gone have left in a directory, of these roles."""
    ours = re.compile(rf"{PREFIX}-(\d+)-({'|'.join(map(re.escape, roles))})")
    found = ((path, ours.fullmatch(path.name)) for path in directory.glob(f"{PREFIX}-*"))
    return sorted(path for path, match in found if match and not Path("/proc", match[1]).exists())


@contextmanager
def files(parent: Path = RUN_DIRECTORY) -> Iterator[Path]:
    """A directory for this demo's files until the end of the block."""
    for path in leftovers(parent, "files"):
        shutil.rmtree(path, ignore_errors=True)
    directory = parent / name_of("files")
    directory.mkdir(mode=0o700)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)

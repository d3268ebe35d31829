# SPDX-License-Identifier: Apache-2.0
"""Debian 11's Python 3.9: the last of Debian's whose USDT probes tell of every call."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
import urllib.request
from pathlib import Path

# It gets no more updates, so its packages do not change: their names and sums are known.
_POOLS = ("http://deb.debian.org/debian", "http://archive.debian.org/debian")
_PACKAGES = {
    "python3.9-minimal_3.9.2-1_amd64.deb":
        "5d6003c5c20223a2547ac4976e09a9ec778dbe351507a6292bef3b60df5f4aa7",
    "libpython3.9-minimal_3.9.2-1_amd64.deb":
        "594283526d67e03e3c4e96534f6bfe5da1bf41da5d49360553c9b79fbf08c4ab",
    "libpython3.9-stdlib_3.9.2-1_amd64.deb":
        "32ac64d959ac2dbc5bb289532fc9834dab8f671b5455695a3a9315aad973c65b",
}  # fmt: skip


def old_python() -> Path:
    """The interpreter, unpacked into the cache and not installed; run it with PYTHONHOME.

    Raises:
        OSError: it could not be fetched.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(home) / "otelbpf/python-3.9.2"
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory.parent) as part:
            unpacked = Path(part) / "unpacked"
            for name, sum_ in _PACKAGES.items():
                package = Path(part) / name
                package.write_bytes(_fetch(name, sum_))
                subprocess.run(["dpkg", "--extract", package, unpacked], check=True)
            unpacked.rename(directory)
    return directory / "usr/bin/python3.9"


def _fetch(name: str, sum_: str) -> bytes:
    refusal: OSError | None = None
    for pool in _POOLS:
        try:
            with urllib.request.urlopen(f"{pool}/pool/main/p/python3.9/{name}", timeout=60) as got:
                content = got.read()
        except OSError as error:
            refusal = error
            continue
        if hashlib.sha256(content).hexdigest() == sum_:
            return content
        refusal = OSError(f"{name} from {pool} is not what it was: its SHA-256 differs")
    raise refusal

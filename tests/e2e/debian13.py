# SPDX-License-Identifier: Apache-2.0
"""Debian 13's user land on this machine's kernel: a chroot, made once; what tests write is gone."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from demo.processes import Process, running

ROOT = Path(__file__).resolve().parents[2]
#: Where the checkout is in there.
CHECKOUT = Path("/checkout")
#: What README has its reader install.
PACKAGES = ("libbpf1", "python3-venv")
#: And what tests need besides: certificates, namespaces, and the other loader.
_OTHERS = ("ca-certificates", "iproute2", "python3-bpfcc")
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_MIRROR = "http://deb.debian.org/debian"
_MAKE_S = 900.0
_START_S = 30.0

# Mounts are those of a namespace of its own; they end with it, and so does what is written. What
# this machine knows of the network is known there: names, and whose certificates to trust.
_ENTER = """
made=$1 directory=$2 checkout=$3
at=$directory/debian-13
mount -t tmpfs none "$at"
over() {
    mkdir -p "$at/$1/upper" "$at/$1/work" "$3"
    mount -t overlay -o "lowerdir=$2,upperdir=$at/$1/upper,workdir=$at/$1/work" none "$3"
}
root=$at/root
over system "$made" "$root"
over sources "$checkout" "$root/checkout"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
mkdir -p "$root$directory"
mount --bind "$directory" "$root$directory"
cp --dereference /etc/resolv.conf /etc/hosts "$root/etc/"
cp --dereference /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo made
exec chroot "$root" sleep infinity
"""


@dataclass(frozen=True)
class Debian13:
    """The user land, while it is mounted.

    Attributes:
        directory: seen in there by the same path.
    """

    process: Process
    directory: Path

    def enter(self, directory: Path = CHECKOUT) -> list[str]:
        """The start of a command line that runs the rest in there."""
        return [
            "nsenter", f"--target={self.process.popen.pid}", "--mount", "--root", "--wd", "--",
            "env", f"--chdir={directory}",
            "--unset=PYTHONPATH", "--unset=PYTHONHOME",
            "--unset=VIRTUAL_ENV", "HOME=/root", "LC_ALL=C.UTF-8", "PYTHONDONTWRITEBYTECODE=1",
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        ]  # fmt: skip

    def shell(self, line: str, timeout_s: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Runs a shell's line in the checkout; both outputs come as one."""
        return subprocess.run(
            [*self.enter(), "sh", "-ec", line], text=True, timeout=timeout_s,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip


@contextlib.contextmanager
def debian13(directory: Path) -> Iterator[Debian13]:
    """Mounts it until the end of the block; it is made first, if the cache has none.

    Args:
        directory: seen in there by the same path.
    """
    (directory / "debian-13").mkdir()
    command = [
        "unshare", "--mount", "--propagation", "private", "sh", "-ec", _ENTER, "sh",
        bootstrapped(*PACKAGES, *_OTHERS), directory, ROOT,
    ]  # fmt: skip
    with running("debian-13", command, directory) as process:
        process.wait_until(Process.printed_line, _START_S)
        yield Debian13(process, directory)


def bootstrapped(*packages: str) -> Path:
    """Debian 13 with no more than these and what it cannot do without; to be left as it is.

    It is in the cache: delete it there to have a newer one.

    Raises:
        RuntimeError: debootstrap's last words.
    """
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    cache = Path(home) / "otelbpf/debian-13"
    # Another set of packages is another user land.
    root = cache / "-".join(["minbase", *sorted(packages)])
    if root.exists():
        return root
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not root.exists():
            _make(cache, root, packages)
    return root


def _make(cache: Path, root: Path, packages: Sequence[str]) -> None:
    for left in cache.glob("unfinished-*"):  # by those who were killed
        shutil.rmtree(left)
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cache))
    included = [f"--include={','.join(packages)}"] if packages else []
    command = [
        "debootstrap", "--variant=minbase", f"--keyring={_KEYRING}", *included, "trixie",
        unfinished, _MIRROR,
    ]  # fmt: skip
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=_MAKE_S,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"debootstrap failed: {done.stdout[-2000:]}")
    for package in (unfinished / "var/cache/apt/archives").glob("*.deb"):
        package.unlink()
    unfinished.chmod(0o755)
    unfinished.rename(root)

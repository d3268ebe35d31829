# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernels, unpacked into a cache and not installed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import initramfs
from children import run
from debian import Apt
from errors import FetchError, InputError

#: Those that the tests run on.
TESTED = ("6.1", "6.12")

# The plain flavour only: the cloud kernels cannot mount the host's file system.
_RELEASE = re.compile(r"\d+\.\d+\.\d+(-\d+|\+deb\d+(\.\d+)?)*-amd64")
_SERIES = re.compile(r"\d+\.\d+")
_PACKAGE = "linux-image-"
#: What the guest needs before it has the host's file system.
_EARLY_MODULES = ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel.

    Attributes:
        release: as `uname -r` says it.
    """

    release: str
    directory: Path

    @property
    def vmlinux(self) -> Path:
        return self.directory / "vmlinux"

    @property
    def initramfs(self) -> Path:
        """Without the guest's first process."""
        return self.directory / "initramfs"

    @property
    def modules(self) -> Path:
        return self.directory / "lib/modules" / self.release


def cache_directory() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "otelbpf/kernels"


def find(name: str) -> Kernel:
    """The kernel of that name; fetched if the cache has none.

    Args:
        name: a series, such as 6.12, or a release, such as 6.1.0-56-amd64.
    Raises:
        InputError: Debian has none of that name.
        FetchError: it could not be fetched.
    """
    if not _SERIES.fullmatch(name) and not _RELEASE.fullmatch(name):
        raise InputError(
            f"{name!r} is no kernel: give a series, such as 6.1 or 6.12, or a release, "
            "such as 6.1.0-56-amd64"
        )
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    if kernel := _cached(cache, name):
        return kernel
    with _locked(cache):
        return _cached(cache, name) or _fetch(cache, name)


def _cached(cache: Path, name: str) -> Kernel | None:
    release = newest(name, (path.name for path in cache.iterdir()))
    return Kernel(release, cache / release) if release else None


def newest(name: str, releases: Iterable[str]) -> str | None:
    """The newest of these releases that goes by the name, if any does."""
    return max(
        (
            release
            for release in releases
            if _RELEASE.fullmatch(release) and (release == name or release.startswith(f"{name}."))
        ),
        key=_numbers,
        default=None,
    )


def _numbers(release: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", release)]


@contextlib.contextmanager
def _locked(cache: Path) -> Iterator[None]:
    """One fetches, all others wait for it."""
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(cache: Path, name: str) -> Kernel:
    for left in cache.glob("unfinished-*"):  # by those who were killed
        shutil.rmtree(left)
    apt = Apt.prepare(cache / "apt")
    apt.update()
    offered = [package.removeprefix(_PACKAGE) for package in apt.names(_PACKAGE)]
    release = newest(name, offered)
    if release is None:
        plain = sorted(filter(_RELEASE.fullmatch, offered), key=_numbers)
        raise InputError(f"Debian 12 has no kernel {name}, or no more: only {', '.join(plain)}")

    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=cache))
    try:
        package = apt.download(_PACKAGE + release, unfinished)
        _unpack(package, release, unfinished)
        unfinished.chmod(0o755)
        unfinished.rename(cache / release)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return Kernel(release, cache / release)


def _unpack(package: Path, release: str, into: Path) -> None:
    run("dpkg-deb", "--extract", package, into)
    package.unlink()
    kernel = Kernel(release, into)
    bzimage = into / "boot" / f"vmlinuz-{release}"
    try:
        kernel.vmlinux.write_bytes(initramfs.extract_vmlinux(bzimage.read_bytes()))
    except ValueError as error:
        raise FetchError(f"cannot unpack {_PACKAGE}{release}: {error}") from error
    for name in ("boot", "usr"):  # needed no longer
        shutil.rmtree(into / name, ignore_errors=True)

    run("depmod", "--basedir", into, release)
    kernel.initramfs.write_bytes(initramfs.base(_static_busybox(), _early_modules(kernel)))


def _early_modules(kernel: Kernel) -> list[Path]:
    """Files of what is needed early and is not built in, each after what it depends on."""
    files: dict[Path, None] = {}
    for module in _EARLY_MODULES:
        depends = run(
            "modprobe",
            "--dirname",
            kernel.directory,
            "--set-version",
            kernel.release,
            "--show-depends",
            module,
        )
        for line in depends.splitlines():
            kind, _, path = line.strip().partition(" ")
            if kind == "insmod":
                files[Path(path.split()[0])] = None
    return list(files)


def _static_busybox() -> Path:
    path = shutil.which("busybox")
    if path is None or b"/ld-linux" in Path(path).read_bytes():
        raise InputError(
            "there is no statically linked busybox: install the package "
            "busybox-static, or run scripts/setup --test"
        )
    return Path(path)

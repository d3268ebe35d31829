# SPDX-License-Identifier: Apache-2.0
"""Which kernel a name means, and a cache that holds whole kernels only.

Debian is a directory of small packages here, and apt a script that hands them out.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import initramfs
import kernels
import pytest

HERE = Path(__file__).resolve().parent
DEADLINE_S = 30
OFFERED = (
    "6.1-amd64", "6.1.0-9-amd64", "6.1.0-10-amd64", "6.1.0-11-cloud-amd64", "6.1.0-11-rt-amd64",
    "6.12.9+deb12-amd64", "6.12.10+deb12-amd64", "6.12.11+deb12-cloud-amd64",
)  # fmt: skip
VMLINUX = b"\x7fELF " * 1000
# Of x86-64.
FLOCK = "73"

APT_GET = """\
#!/bin/sh
# A download waits at the gate, if there is one.
echo $$ >"$DEBIAN/pid"
echo "$3 $4" >>"$DEBIAN/asked"
case $3 in
    download) if [ -e "$DEBIAN/gate" ]; then read -r _ <"$DEBIAN/gate"; fi
              cp "$DEBIAN/$4.deb" . ;;
esac
"""
APT_CACHE = """\
#!/bin/sh
cat "$DEBIAN/names"
"""


def bzimage(payload: bytes) -> bytes:
    """As little of one as holds a payload, 16 bytes behind a setup of one sector."""
    image = bytearray(1024 + 16)
    image[0x1F1] = 1
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", image, 0x248, 16, len(payload))
    return bytes(image) + payload + b"behind it"


def zstd(data: bytes) -> bytes:
    return subprocess.run(
        ["zstd", "--stdout"], input=data, stdout=subprocess.PIPE, check=True
    ).stdout


@dataclass(frozen=True)
class Debian:
    """Packages, the programs that fetch them, and the cache that they end in."""

    directory: Path

    @property
    def cache(self) -> Path:
        return self.directory / "home/otelbpf/kernels"

    @property
    def gate(self) -> Path:
        return self.directory / "gate"

    def offer(self, release: str) -> None:
        """Puts a kernel up that has all that guests need built in."""
        tree = self.directory / "tree"
        modules = tree / "lib/modules" / release
        for path in (tree / "DEBIAN", tree / "boot", modules):
            path.mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(
            f"Package: linux-image-{release}\nVersion: 1\nArchitecture: all\n"
            "Maintainer: nobody\nDescription: a test's\n"
        )
        (tree / f"boot/vmlinuz-{release}").write_bytes(bzimage(gzip.compress(VMLINUX)))
        (modules / "modules.order").touch()
        (modules / "modules.builtin").write_text("".join(
            f"kernel/{name}.ko\n"
            for name in ("virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay")
        ))  # fmt: skip
        package = self.directory / f"linux-image-{release}.deb"
        subprocess.run(["dpkg-deb", "--build", tree, package], check=True, capture_output=True)
        shutil.rmtree(tree)

    def find(self, name: str) -> subprocess.Popen[str]:
        """Looks for a kernel in a process of its own, which prints its release."""
        program = "import sys, kernels; print(kernels.find(sys.argv[1]).release)"
        environment = {
            "PATH": f"{self.directory / 'bin'}:{os.environ['PATH']}",
            "XDG_CACHE_HOME": str(self.directory / "home"),
            "DEBIAN": str(self.directory),
            "PYTHONPATH": str(HERE),
        }
        return subprocess.Popen(
            [sys.executable, "-c", program, name],
            env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def asked(self) -> list[str]:
        """What apt was asked for, so far."""
        path = self.directory / "asked"
        return path.read_text().splitlines() if path.exists() else []

    def wait_until_asked(self, what: str) -> None:
        end = time.monotonic() + DEADLINE_S
        while what not in self.asked():
            assert time.monotonic() < end, self.asked()

    def wait_until_apt_is_gone(self) -> None:
        end = time.monotonic() + DEADLINE_S
        status = Path("/proc", (self.directory / "pid").read_text().strip(), "status")
        while status.exists() and "State:\tZ" not in status.read_text():
            assert time.monotonic() < end, "apt-get goes on"

    def whole_kernels(self) -> list[str]:
        return sorted(path.name for path in self.cache.glob("6.*"))


@pytest.fixture
def debian(tmp_path: Path) -> Debian:
    (tmp_path / "bin").mkdir()
    for name, script in (("apt-get", APT_GET), ("apt-cache", APT_CACHE)):
        (tmp_path / "bin" / name).write_text(script)
        (tmp_path / "bin" / name).chmod(0o755)
    (tmp_path / "names").write_text("".join(f"linux-image-{name}\n" for name in OFFERED))
    return Debian(tmp_path)


def finish(process: subprocess.Popen[str]) -> str:
    """What it printed."""
    output, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, errors
    return output.strip()


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("6.1", "6.1.0-10-amd64"),
        ("6.12", "6.12.10+deb12-amd64"),
        ("6.1.0-9-amd64", "6.1.0-9-amd64"),
        ("6.1.0-11-amd64", None),
        ("6.2", None),
    ],
)
def test_a_series_means_its_newest_plain_kernel(name: str, release: str | None) -> None:
    assert kernels.newest(name, OFFERED) == release


@pytest.mark.parametrize(
    ("packed", "size"),
    [(gzip.compress, b""), (lzma.compress, b"size"), (zstd, b"size")],
    ids=["gzip", "xz", "zstd"],
)
def test_the_elf_image_is_taken_out_of_a_bzimage(
    packed: Callable[[bytes], bytes], size: bytes
) -> None:
    assert initramfs.extract_vmlinux(bzimage(packed(VMLINUX) + size)) == VMLINUX


def test_a_kernel_packed_otherwise_is_refused() -> None:
    with pytest.raises(ValueError, match="packed in an unknown way: 425a68"):
        initramfs.extract_vmlinux(bzimage(b"BZh and so on"))


def test_a_kernel_is_fetched_once(debian: Debian) -> None:
    debian.offer("6.1.0-10-amd64")
    assert finish(debian.find("6.1")) == "6.1.0-10-amd64"
    kernel = debian.cache / "6.1.0-10-amd64"
    assert (kernel / "vmlinux").read_bytes() == VMLINUX
    assert (kernel / "initramfs").read_bytes().startswith(b"070701")
    assert (kernel / "lib/modules/6.1.0-10-amd64/modules.dep").exists()

    for name in ("6.1", "6.1.0-10-amd64"):
        assert finish(debian.find(name)) == "6.1.0-10-amd64"
    assert debian.asked() == ["update ", "download linux-image-6.1.0-10-amd64"]


def test_two_who_want_the_same_kernel_fetch_it_once(debian: Debian) -> None:
    debian.offer("6.1.0-10-amd64")
    os.mkfifo(debian.gate)
    first = debian.find("6.1")
    debian.wait_until_asked("download linux-image-6.1.0-10-amd64")
    second = debian.find("6.1")
    end = time.monotonic() + DEADLINE_S
    while Path(f"/proc/{second.pid}/syscall").read_text().split()[0] != FLOCK:
        assert time.monotonic() < end, "the second does not wait for the first"
        assert second.poll() is None, second.communicate()
    debian.gate.write_text("go on\n")
    assert finish(first) == finish(second) == "6.1.0-10-amd64"
    assert debian.asked() == ["update ", "download linux-image-6.1.0-10-amd64"]


def test_a_killed_fetch_leaves_nothing_that_looks_whole(debian: Debian) -> None:
    debian.offer("6.1.0-10-amd64")
    os.mkfifo(debian.gate)
    with debian.find("6.1") as killed:
        debian.wait_until_asked("download linux-image-6.1.0-10-amd64")
        killed.send_signal(signal.SIGKILL)
    debian.wait_until_apt_is_gone()
    assert list(debian.cache.glob("unfinished-*"))
    assert debian.whole_kernels() == []

    debian.gate.unlink()
    assert finish(debian.find("6.1")) == "6.1.0-10-amd64"
    assert debian.whole_kernels() == ["6.1.0-10-amd64"]
    assert not list(debian.cache.glob("unfinished-*"))


def test_a_package_that_cannot_be_had_is_explained(debian: Debian) -> None:
    with debian.find("6.1") as finder:  # its name is known, but there is none
        errors = finder.stderr.read()
    assert re.search(r"^errors.FetchError: apt-get .* download linux-image-6.1.0-10", errors, re.M)
    assert debian.whole_kernels() == []


def test_a_kernel_that_debian_has_no_more_is_explained(debian: Debian) -> None:
    with debian.find("6.1.0-8-amd64") as finder:
        assert finder.stderr.read().splitlines()[-1] == (
            "errors.InputError: Debian 12 has no kernel 6.1.0-8-amd64, or no more: only "
            "6.1.0-9-amd64, 6.1.0-10-amd64, 6.12.9+deb12-amd64, 6.12.10+deb12-amd64"
        )

# SPDX-License-Identifier: Apache-2.0
"""What a guest boots from: the kernel's ELF image, and archives for its initramfs."""

from __future__ import annotations

import lzma
import stat
import struct
import subprocess
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_REGULAR = stat.S_IFREG
_DIRECTORY = stat.S_IFDIR
_DEVICE = stat.S_IFCHR


@dataclass(frozen=True)
class Entry:
    """One entry of a cpio archive.

    Attributes:
        device: major and minor number, of a character device.
    """

    name: str
    mode: int
    data: bytes = b""
    device: tuple[int, int] = (0, 0)


def directory(name: str) -> Entry:
    return Entry(name, _DIRECTORY | 0o755)


def regular(name: str, data: bytes, *, executable: bool = False) -> Entry:
    return Entry(name, _REGULAR | (0o755 if executable else 0o644), data)


def device(name: str, major: int, minor: int) -> Entry:
    return Entry(name, _DEVICE | 0o600, device=(major, minor))


def archive(entries: Iterable[Entry]) -> bytes:
    """A cpio archive; the kernel unpacks several in a row, one over the other.

    Source:
        Linux, Documentation/driver-api/early-userspace/buffer-format.rst, "newc".
    """
    packed = bytearray()
    for number, entry in enumerate([*entries, Entry("TRAILER!!!", 0)], start=1):
        name = entry.name.encode() + b"\0"
        # Inode, mode, owner, group, links, time, size, device (2), its own device (2), name's
        # length, checksum.
        size = len(entry.data)
        fields = (number, entry.mode, 0, 0, 1, 0, size, 0, 0, *entry.device, len(name), 0)
        packed += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        packed += b"\0" * (-len(packed) % 4) + entry.data
        packed += b"\0" * (-len(packed) % 4)
    return bytes(packed)


def extract_vmlinux(bzimage: bytes) -> bytes:
    """The ELF image packed in a bzImage: boots without unpacking itself, and has the BTF.

    Raises:
        ValueError: it is none, or packed in another way than xz, zstd or gzip.
    Source:
        Linux, Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
    """
    if bzimage[0x202:0x206] != b"HdrS":
        raise ValueError("this is no bzImage")
    setup_sectors = bzimage[0x1F1] or 4
    offset, length = struct.unpack_from("<II", bzimage, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = bzimage[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(wbits=31).decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):
        # Its last four bytes are not zstd's, but the size of what is packed.
        command = ["zstd", "--decompress", "--stdout", "--quiet"]
        return subprocess.run(
            command, input=payload[:-4], stdout=subprocess.PIPE, check=True
        ).stdout
    raise ValueError(f"this kernel is packed in an unknown way: {payload[:6].hex()}")


def base(busybox: Path, modules: Iterable[Path]) -> bytes:
    """The part of an initramfs that depends on the kernel alone.

    Args:
        modules: files of modules, in the order in which they can be loaded.
    """
    entries = [
        directory(name)
        for name in ("bin", "dev", "host", "memory", "modules", "proc", "root", "sys")
    ]
    entries.append(device("dev/console", 5, 1))
    entries.append(regular("bin/busybox", busybox.read_bytes(), executable=True))
    names = []
    for path in modules:
        data = path.read_bytes()
        if path.suffix == ".xz":
            data = lzma.decompress(data)
        names.append(path.name.removesuffix(".xz"))
        entries.append(regular(f"modules/{names[-1]}", data))
    entries.append(regular("modules/order", "\n".join(names).encode()))
    return archive(entries)

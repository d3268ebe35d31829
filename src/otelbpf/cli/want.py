# SPDX-License-Identifier: Apache-2.0
"""Errors for want of files, memory, threads or disk. It imports next to nothing: so may they be."""

from __future__ import annotations

import errno

#: What they come as, among others.
ERRORS = (OSError, MemoryError, RuntimeError, ImportError, SystemError)

_WANTING = {
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.EAGAIN,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
}
# What libraries say, and the linker of one that does not fit in.
_WORDS = (
    "can't start new thread",
    "failed to map segment",
    "cannot allocate memory",
    "cannot map zero-fill",
    # Python's, where it had no memory to say it.
    "without exception set",
    "without setting an exception",
)


def is_why(error: Exception) -> bool:
    """Is it an error for want of something?"""
    if isinstance(error, OSError):
        return error.errno in _WANTING
    return isinstance(error, MemoryError) or any(each in str(error).lower() for each in _WORDS)


def sentence(error: Exception) -> str:
    """What is said of it."""
    words = " ".join(str(error).split()) or "memory"
    return (
        f"the system has no more of what this takes ({words}): see what limits this process "
        "(`ulimit -a`), and whether disk and memory are full"
    )

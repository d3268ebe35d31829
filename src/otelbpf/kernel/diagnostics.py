# SPDX-License-Identifier: Apache-2.0
"""What the compiler and the verifier have to say about a program that they refuse."""

from __future__ import annotations

import os
import tempfile


class CapturedStderr:
    """What BCC's C++ code writes to standard error, which Python cannot redirect."""

    text = ""

    def __enter__(self) -> CapturedStderr:
        # In memory: there may be no directory to write to.
        self._file = open(os.memfd_create("otelbpf-stderr"), "rb")
        self._saved = os.dup(2)
        os.dup2(self._file.fileno(), 2)
        return self

    def __exit__(self, *_: object) -> None:
        os.dup2(self._saved, 2)
        os.close(self._saved)
        self._file.seek(0)
        self.text = self._file.read().decode(errors="replace")
        self._file.close()


def keep_log(name: str, text: str) -> str:
    """Keeps a log in a file; says what to do with it, and where it is."""
    try:
        handle, path = tempfile.mkstemp(prefix=f"otelbpf-{name}-", suffix=".log")
        with os.fdopen(handle, "w") as file:
            file.write(text)
    except OSError as error:
        return (
            "set TMPDIR to a directory that can be written, try again and please report this with "
            f"the whole log, which could not be written this time ({error.strerror})"
        )
    return f"please report this with the whole log, which is in {path}"


def first_error(text: str) -> str:
    """The compiler's first error."""
    lines = [line for line in text.splitlines() if "error:" in line]
    return lines[0] if lines else "no message"


def last_verdict(text: str) -> str:
    """The verifier's last words before its statistics."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    words = [line for line in lines if not line.startswith(("processed ", "bpf: "))]
    return words[-1] if words else "no message"

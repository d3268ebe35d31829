# SPDX-License-Identifier: Apache-2.0
"""The native module; where it cannot be imported, nobody ever listens.

The rest of the plugin calls these as `marker.listening()` and so on. They are those of
`otelbpf_plugin._marker`, whose docstrings tell what they do.
"""

from __future__ import annotations

#: Why the native module is missing; None: it is there.
missing: ImportError | None = None

try:
    from otelbpf_plugin._marker import addresses, end, listening, start
except ImportError as error:
    missing = error

    def listening() -> bool:
        """Nobody can."""
        return False

    def start(mark: bytes) -> bool:
        """Finds no request."""
        return False

    def end(mark: bytes) -> None:
        """Does nothing."""

    def addresses(fd: int) -> bytes | None:
        """Finds none."""
        return None

# SPDX-License-Identifier: Apache-2.0
"""The command line."""

import os

from otelbpf.cli import want

__all__ = ["main"]


def main() -> int:
    """The `otelbpf` command; returns its exit status."""
    try:
        from otelbpf.cli import commands
    except want.ERRORS as error:
        if not want.is_why(error):
            raise
        os.write(2, f"otelbpf: {want.sentence(error)}\n".encode())
        return 2
    return commands.main()

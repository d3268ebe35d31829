# SPDX-License-Identifier: Apache-2.0
"""The command line."""

from otelbpf.cli.commands import main

__all__ = ["main"]

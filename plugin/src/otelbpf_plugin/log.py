# SPDX-License-Identifier: Apache-2.0
"""What the plugin has to say, it says once: it is a guest in somebody's request."""

from __future__ import annotations

import logging

logger = logging.getLogger("otelbpf_plugin")
_said: set[str] = set()


def warn_once(message: str, error: BaseException | None = None) -> None:
    """Logs a warning, unless this process has logged the same one before.

    Args:
        error: what was caught; its traceback is logged too.
    """
    if message not in _said:
        _said.add(message)
        logger.warning(message, exc_info=error)

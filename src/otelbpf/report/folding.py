# SPDX-License-Identifier: Apache-2.0
"""path -> route, where nobody has told the route's template."""

from __future__ import annotations

import re
from functools import lru_cache

_ID = re.compile(
    r"[0-9]+"
    r"|[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|(?=[^0-9]*[0-9])[0-9a-fA-F]{8,}"
    r"|(?=[^0-9]*[0-9])[0-9A-Za-z_-]{20,}"
)


@lru_cache(maxsize=65_536)
def fold(path: str) -> str:
    """The path with `{id}` for each part that is a number, a UUID, a hash or a token."""
    return "/".join("{id}" if _ID.fullmatch(part) else part for part in path.split("/"))

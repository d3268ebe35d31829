# SPDX-License-Identifier: Apache-2.0
"""How many files this process may have open without a wait."""

from __future__ import annotations

import fcntl
import os
import resource

# More than loading the programs takes, where four threads do it.
_MANY = 1_024


def make_room() -> None:
    """Has the kernel's table of this process's open files be long enough; for one thread only.

    It grows by itself, but where there are threads it waits for all processors each time that it
    does, some 10 ms (fs/file.c, expand_fdtable()).
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    one = os.eventfd(0)
    try:
        os.close(fcntl.fcntl(one, fcntl.F_DUPFD_CLOEXEC, min(_MANY, most) - 1))
    finally:
        os.close(one)

# SPDX-License-Identifier: Apache-2.0
"""The errors that a user is meant to read."""


class OtelbpfError(Exception):
    """What failed, where, why, and what to do next, in one sentence.

    The command line prints it as it is and exits with status 2.
    """


class KernelError(OtelbpfError):
    """This kernel, or this process's rights on it, cannot do what is asked."""


class UsageError(OtelbpfError):
    """An option or an environment variable has a value that cannot be used."""

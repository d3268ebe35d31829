# SPDX-License-Identifier: Apache-2.0
"""The errors that a user is meant to read."""


class OtelbpfError(Exception):
    """What failed, where, why, and what to do next, in one sentence.

    The command line prints it as it is and exits with status 2.

    Args:
        what: what failed, where and why; or the whole sentence.
        remedy: what to do next.
    """

    def __init__(self, what: str, remedy: str = "") -> None:
        super().__init__(f"{what}: {remedy}" if remedy else what)
        self.what = what
        self.remedy = remedy


class KernelError(OtelbpfError):
    """This kernel, or this process's rights on it, cannot do what is asked."""


class RefusedError(KernelError):
    """The verifier refused a program, or libbpf the ready-made ones.

    Args:
        what: as of all errors.
        instead: what to do instead; empty: nothing.
        report: how to report it; empty: that is not asked for.
    """

    def __init__(self, what: str, instead: str = "", report: str = "") -> None:
        super().__init__(what, "; ".join(filter(None, (instead, report))))
        self.report = report


class UsageError(OtelbpfError):
    """An option or an environment variable has a value that cannot be used."""

# SPDX-License-Identifier: Apache-2.0
"""What can keep a guest from running a command to its end."""


class VmError(Exception):
    """No exit code of the command's to pass on."""

    exit_code = 125


class InputError(VmError):
    """What was asked for cannot be had here."""

    exit_code = 2


class FetchError(VmError):
    """A kernel could not be fetched or unpacked."""


class GuestError(VmError):
    """The guest did not boot, or died before the command ended."""


class CommandTimeoutError(VmError):
    """The command took too long; the code is that of timeout(1)."""

    exit_code = 124

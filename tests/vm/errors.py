# SPDX-License-Identifier: Apache-2.0
"""What can go wrong with a guest, by whose fault it is."""


class InputError(Exception):
    """What was asked for cannot be had here."""


class GuestError(Exception):
    """The guest did not boot, or ended before the command did."""

# SPDX-License-Identifier: Apache-2.0
"""What requests say, by the protocols' own rules."""

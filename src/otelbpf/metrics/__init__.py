# SPDX-License-Identifier: Apache-2.0
"""All requests in sums."""

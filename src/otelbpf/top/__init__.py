# SPDX-License-Identifier: Apache-2.0
"""snapshots -> a table in a terminal."""

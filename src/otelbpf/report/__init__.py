# SPDX-License-Identifier: Apache-2.0
"""recorded spans -> one page for a browser."""

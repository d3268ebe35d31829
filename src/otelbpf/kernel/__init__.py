# SPDX-License-Identifier: Apache-2.0
"""The programs: what the kernel offers, compiling, loading and attaching them, and their tables."""

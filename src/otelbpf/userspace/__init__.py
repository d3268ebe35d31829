# SPDX-License-Identifier: Apache-2.0
"""What is found in other programs: their functions, and their threads' contexts."""

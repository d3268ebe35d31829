# SPDX-License-Identifier: Apache-2.0
"""One request's stamps: read from the kernel, put in order, and accounted for."""

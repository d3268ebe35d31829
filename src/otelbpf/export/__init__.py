# SPDX-License-Identifier: Apache-2.0
"""The ways out, for spans and for metrics, and what became of what was sent."""

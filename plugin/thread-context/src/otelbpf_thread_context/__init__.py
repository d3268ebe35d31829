# SPDX-License-Identifier: Apache-2.0
"""Publishes the span that each thread works on, for profilers and otelbpf (OTEP 4947)."""

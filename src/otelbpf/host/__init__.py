# SPDX-License-Identifier: Apache-2.0
"""The machine: its processes, namespaces, interfaces and clocks, and what this process may do."""

# SPDX-License-Identifier: Apache-2.0
"""The demo: a gateway under load in its own network, watched by otelbpf, and a report.

Run it with ``scripts/demo``. ``__main__`` shows the whole way on one page.
"""

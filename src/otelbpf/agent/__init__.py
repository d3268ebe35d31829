# SPDX-License-Identifier: Apache-2.0
"""Choose, load, attach, run, drain."""

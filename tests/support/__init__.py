# SPDX-License-Identifier: Apache-2.0
"""What tests of several directories, and the measurements in bench/, share."""

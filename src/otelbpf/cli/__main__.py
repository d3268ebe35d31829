# SPDX-License-Identifier: Apache-2.0
"""As `otelbpf`."""

import sys

from otelbpf.cli import main

sys.exit(main())

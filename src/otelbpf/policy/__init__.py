# SPDX-License-Identifier: Apache-2.0
"""What users ask for: which requests are kept, and what their routes and upstreams are."""

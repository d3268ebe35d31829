# SPDX-License-Identifier: Apache-2.0
"""OpenTelemetry spans that show where a request's time goes between network card and handler."""

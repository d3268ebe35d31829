# SPDX-License-Identifier: Apache-2.0
"""Which options are needed, and which have no meaning without others."""

from __future__ import annotations

import argparse

from otelbpf.errors import UsageError


def require(arguments: argparse.Namespace) -> None:
    """Of `run` and `top`; of `check` with a file, as `run` would say it.

    Raises:
        UsageError: one is missing, or one is there without what gives it a meaning.
    """
    see = f"see `otelbpf {'top' if arguments.command == 'top' else 'run'} --help`"
    if not arguments.interface:
        raise UsageError(f"the following arguments are required: --interface; {see}")
    if not (arguments.port or arguments.upstream or arguments.client_port):
        raise UsageError(
            "nothing to measure: give a server's --port, or an --upstream or a --client-port that "
            f"requests are sent to; {see}"
        )
    _require_of_proxies(arguments)
    if arguments.no_path and arguments.routes == "found":
        raise UsageError(
            f"--routes found tells paths, and --no-path none: leave one of them out; {see}"
        )
    # Options of `run`, which `top` knows of from a file alone.
    given = vars(arguments)
    if given.get("keep_4xx") and not (given["sample"] or given["slow"]):
        raise UsageError(
            "--keep-4xx says what --sample and --slow keep: give one of these, too; see "
            "`otelbpf run --help`"
        )
    if given.get("capture_query") and arguments.no_path:
        raise UsageError(
            "--capture-query tells a path's query, and --no-path none: leave one out; see "
            "`otelbpf run --help`"
        )


def _require_of_proxies(arguments: argparse.Namespace) -> None:
    proxies = set(arguments.proxy_protocol)
    if proxies:
        # It takes memory, which may be what is missing.
        from otelbpf.kernel.settings import PROXY_NETWORKS_MOST

        if len(proxies) > PROXY_NETWORKS_MOST:
            raise UsageError(
                f"--proxy-protocol names {len(proxies)} networks: there is room for "
                f"{PROXY_NETWORKS_MOST}; name larger ones"
            )
    if arguments.forwarded_header and not arguments.forwarded_by:
        raise UsageError(
            "--forwarded-header has no meaning alone: name the proxies whose header is believed "
            "with --forwarded-by"
        )
    for option, given in (
        ("--proxy-protocol", proxies),
        ("--forwarded-by", arguments.forwarded_by),
    ):
        if given and not arguments.port:
            raise UsageError(
                f"{option} has no meaning without a --port: it is of the clients of a server"
            )

# SPDX-License-Identifier: Apache-2.0
"""One network and one receiver for each test module; agents are each test's own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from demo.receiver import Receiver
from servers import Server, python_server
from support.namespaces import Network, network


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    """Two namespaces with two veths between them."""
    with network(veths=2) as made:
        yield made


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """An OTLP receiver on the host's 127.0.0.1, where the agent runs."""
    with Receiver() as running:
        yield running


@pytest.fixture(scope="module")
def server(net: Network, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """An asyncio server, for tests to which it does not matter which."""
    with python_server(net, tmp_path_factory.mktemp("server"), "asyncio_server", 8080) as running:
        yield running

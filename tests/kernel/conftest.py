# SPDX-License-Identifier: Apache-2.0
"""One lab and one load of the programs for all tests that do not need their own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from lab import Lab, laboratory
from meter import Meter, load, load_gateway
from strangers import Strangers, strangers
from sums_of_connections import Sums, loaded_sums

from otelbpf.ledger.request import Kind


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """The shared namespaces."""
    with laboratory() as lab:
        yield lab


@pytest.fixture(scope="session")
def _shared_meter(lab: Lab) -> Iterator[Meter]:
    meter = load(lab)
    try:
        with meter.attached():
            yield meter
    finally:
        meter.close()


@pytest.fixture
def meter(_shared_meter: Meter) -> Iterator[Meter]:
    """The attached programs, counting from here; checks at the end that nothing went astray."""
    _shared_meter.begin()
    yield _shared_meter
    _shared_meter.end()


@pytest.fixture(scope="session")
def _second_meter() -> Iterator[Meter]:
    with laboratory() as lab:
        meter = load(lab)
        try:
            yield meter
        finally:
            meter.close()


@pytest.fixture
def unattached(_second_meter: Meter) -> Iterator[Meter]:
    """Programs with a lab of their own that are loaded, but not attached yet."""
    _second_meter.begin()
    yield _second_meter
    with _second_meter.attached():
        _second_meter.end()


@pytest.fixture(scope="session")
def _gateway_meter() -> Iterator[Meter]:
    with laboratory() as lab:
        meter = load_gateway(lab)
        try:
            with meter.attached(meter.interface, "lo"):
                yield meter
        finally:
            meter.close()


@pytest.fixture
def gateway(_gateway_meter: Meter) -> Iterator[Meter]:
    """The same for a lab of its own, whose client is measured: in front of the server."""
    _gateway_meter.begin()
    yield _gateway_meter
    _gateway_meter.end()


@pytest.fixture(scope="session")
def stranger() -> Iterator[Strangers]:
    """Programs of somebody else."""
    with strangers() as loaded:
        yield loaded


@pytest.fixture(scope="session")
def sums_of_servers() -> Iterator[Sums]:
    """Programs that add up, loaded, but not attached; the requests' sums are test_series.py's."""
    with loaded_sums(Kind.SERVER) as sums:
        yield sums


@pytest.fixture(scope="session")
def sums_of_clients() -> Iterator[Sums]:
    """The same for a client's connections and requests."""
    with loaded_sums(Kind.CLIENT) as sums:
        yield sums


@pytest.fixture
def unattached_servers(sums_of_servers: Sums) -> Sums:
    """What a server's connections add up to, once the programs are attached."""
    sums_of_servers.begin()
    return sums_of_servers


@pytest.fixture
def servers(sums_of_servers: Sums) -> Iterator[Sums]:
    """The same, attached."""
    with sums_of_servers.attached():
        sums_of_servers.begin()
        yield sums_of_servers
        sums_of_servers.end()


@pytest.fixture
def clients(sums_of_clients: Sums) -> Iterator[Sums]:
    """The same for a client's connections."""
    with sums_of_clients.attached():
        sums_of_clients.begin()
        yield sums_of_clients
        sums_of_clients.end()


@pytest.fixture(params=list(Kind))
def sums(request: pytest.FixtureRequest) -> Sums:
    """Either."""
    return request.getfixturevalue("servers" if request.param is Kind.SERVER else "clients")

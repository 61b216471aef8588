"""One served toy project for all tests that talk to a server."""

import pytest

from tests.flows.server import Server
from tests.flows.toy import Toy


@pytest.fixture(scope="package")
def served(tmp_path_factory):
    toy = Toy(tmp_path_factory.mktemp("served") / "toy")
    with Server(toy, PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS="2") as server:
        yield server

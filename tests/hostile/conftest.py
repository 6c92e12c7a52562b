"""An edge server, an adversary in front of it, a phone: as processes, one of each for all tests that leave them whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from siege import Besieged, Good

pytestmark = pytest.mark.long


@pytest.fixture(scope="session")
def good(digits_artefact: Path) -> Good:
    return Good(digits_artefact)


@pytest.fixture(scope="session")
def edge(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    state = tmp_path_factory.mktemp("hostile") / "edge"
    node = Besieged(
        "edge_server",
        state,
        "--artefact",
        str(digits_artefact),
        "--device",
        "cpu",
        "--tail",
        "eager",
        "--threads",
        "1",
        "--grace-s",
        "1",
    )
    yield node
    node.stop()


@pytest.fixture(scope="session")
def relay(digits_artefact: Path, edge: Besieged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    state = tmp_path_factory.mktemp("hostile") / "adversary"
    node = Besieged("adversary", state, "--artefact", str(digits_artefact), "--upstream", edge.grpc)
    yield node
    node.stop()


@pytest.fixture(scope="session")
def phone(digits_artefact: Path, relay: Besieged, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    state = tmp_path_factory.mktemp("hostile") / "client"
    node = Besieged("mobile_client", state, "--artefact", str(digits_artefact), "--target", relay.grpc)
    yield node
    node.stop()

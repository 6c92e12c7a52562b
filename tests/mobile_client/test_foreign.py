"""The phone before a server of which it knows no more than a model's name: by a stream, and by calls."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from foreign_server import Foreign, edge_server, served
from typer.testing import CliRunner, Result

from mobile_client.__main__ import app
from splitcore.artefact import Artefact
from splitcore.journal import read


@pytest.fixture(scope="module")
def edge(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with edge_server(digits_artefact, tmp_path_factory.mktemp("edge")) as target:
        yield target


def once(artefact: Path, target: str, state: Path, codec: str = "identity", **endpoint: object) -> Result:
    state.mkdir(exist_ok=True)
    (state / "endpoint.json").write_text(json.dumps(endpoint))
    options = [
        "--artefact",
        str(artefact),
        "--target",
        target,
        "--state",
        str(state),
        "--endpoint",
        str(state / "endpoint.json"),
    ]
    return CliRunner().invoke(app, ["once", *options, "--run", "r", "--codec", codec, "--load", "offline", "--count", "40"])


@pytest.mark.parametrize("dialect", ["triton", "unary"])
def test_it_sends_its_frames_by_names_from_the_metadata(dialect: str, edge: str, digits_artefact: Path, tmp_path: Path) -> None:
    artefact = Artefact(digits_artefact)
    result = once(digits_artefact, edge, tmp_path / dialect, model=artefact.manifest.name, dialect=dialect)
    assert result.exit_code == 0, result.output
    frames = sorted(read(tmp_path / dialect / "passes" / "r" / "frames.jsonl"), key=lambda row: row["sequence"])
    assert [row["predicted"] for row in frames] == artefact.unsplit_labels[:40].tolist()


def test_a_codec_that_is_not_plain_numbers_and_another_shape_end_the_pass(
    edge: str, digits_artefact: Path, tmp_path: Path
) -> None:
    name = Artefact(digits_artefact).manifest.name
    coded = once(digits_artefact, edge, tmp_path / "coded", codec="uniform8/channel", model=name)
    assert coded.exit_code == 1 and "codec: {kind: identity}" in coded.output + coded.stderr
    with served(Foreign()) as foreign:
        other = once(digits_artefact, foreign.target, tmp_path / "other", model="shop", input="picture")
    assert other.exit_code == 1 and "serve the tail of this artefact" in other.output + other.stderr

"""Accuracy over bytes: real passes of a phone and an edge, and what is made of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from rich.console import Console

from splitcore.artefact import Artefact
from splitcore.codec import fit
from splitcore.codec.uniform import Uniform
from splitcore.errors import ScenarioError
from splitcore.head import Head
from splitcore.nn.tail import load_tail
from testbed.rates.command import rates
from testbed.rates.config import load_rates


def measured(folder: Path, artefact: Path) -> list[dict[str, object]]:
    file = folder / "curves.yaml"
    codecs = [{"kind": "uniform", "bits": bits} for bits in (1, 4)]
    file.write_text(yaml.safe_dump({
        "name": "tiny", "curves": [{"title": "two", "artefacts": [str(artefact)], "codecs": codecs},
                                   {"title": "its own", "artefacts": [str(artefact)]}],
    }))  # fmt: skip

    def refuse(recipe: Path, out: Path) -> None:
        raise AssertionError(f"there is no recipe, {recipe} {out}")

    rates(file, None, folder / "runs", Console(quiet=True), refuse, device="cpu", data_dir=None, fresh=False)
    return json.loads((folder / "runs" / "rates" / "tiny" / "tiny.json").read_text())["rows"]  # type: ignore[no-any-return]


@pytest.mark.long
def test_bytes_and_accuracy_are_those_of_the_codec_and_a_second_call_measures_nothing(
    digits_artefact: Path, tmp_path: Path
) -> None:
    rows = measured(tmp_path, digits_artefact)
    opened = Artefact(digits_artefact)
    images, labels = opened.samples
    z, tail = Head(opened).from_uint8(images), load_tail(opened)
    for row, bits in zip(rows, (1, 4, opened.manifest.codec.bits), strict=True):  # type: ignore[union-attr]
        codec = fit(Uniform(bits=bits), opened.latent)
        with torch.inference_mode():
            right = tail(torch.from_numpy(codec.snap(z))).argmax(1).numpy() == labels
        accuracy, sent = row["accuracy"], row["bytes"]
        assert isinstance(accuracy, dict) and isinstance(sent, dict)
        assert row["n"] == len(images)
        assert abs(accuracy["count"] - int(np.sum(right))) <= 1, "a logit's last bit may differ"
        payload = opened.latent.elements * bits // 8
        # a frame's number takes one digit or more, and a length one byte or more
        assert payload - 3 <= sent["least"] - row["envelope_bytes"] <= sent["most"] - row["envelope_bytes"] <= payload + 12  # type: ignore[operator]
    folder = tmp_path / "runs" / "rates" / "tiny"
    text = (folder / "tiny.md").read_text()
    assert "`uniform1/channel`" in text and "## its own" in text
    assert (folder / "tiny.png").read_bytes().startswith(b"\x89PNG")
    before = (folder / "points.jsonl").read_bytes()
    assert measured(tmp_path, digits_artefact) == rows
    assert (folder / "points.jsonl").read_bytes() == before


@pytest.mark.parametrize(("change", "reason"), [
    ({"curves": []}, "curves"), ({"curves": [{"title": "x"}]}, "expected `recipes` or `artefacts`"),
    ({"colour": "red"}, "colour"), ({"curves": [{"title": "x", "artefacts": ["a"], "codecs": [{"kind": "morse"}]}]}, "morse"),
])  # fmt: skip
def test_a_file_of_curves_with_an_unknown_key_or_value_is_refused(
    change: dict[str, object], reason: str, tmp_path: Path
) -> None:
    file = tmp_path / "curves.yaml"
    file.write_text(yaml.safe_dump({"name": "x", "curves": [{"title": "x", "artefacts": ["a"]}], **change}))
    with pytest.raises(ScenarioError, match=rf"curves.yaml is not a rates file(?s:.)*{reason}"):
        load_rates(file)

"""Artefacts: what their digest stands for, and what the errors say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from splitcore.artefact import HEAD, MANIFEST, SAMPLES, TAIL, UNSPLIT_LABELS, Artefact, Manifest, agree, sha256, write
from splitcore.errors import ArtefactError, HandshakeError


def manifest_of(folder: Path, **changes: Any) -> Manifest:
    fields: dict[str, Any] = {
        "name": "tiny",
        "approach": "sc",
        "cut": "conv2",
        "input_shape": (1, 2, 2),
        "preprocessing": "none",
        "latent": {"shape": (2, 1, 1), "lo": (0.0, -1.0), "hi": (1.0, 1.0), "std": 0.5},
        "codec": {"kind": "uniform", "bits": 4, "per": "channel"},
        "classes": ("a", "b"),
        "tail": {"net": "tiny", "arguments": {"width": 4, "kernel": [3, 3]}},
        "dataset": "digits",
        "accuracy": 0.5,
        "files": {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != MANIFEST},
        "made_with": {"python": "3.11", "seed": 1, "lr": 0.1},
    }
    return Manifest.model_validate({**fields, **changes})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An artefact with real files, which no network could use."""
    (tmp_path / HEAD).write_bytes(b"onnx")
    (tmp_path / TAIL).write_bytes(b"weights")
    np.savez(tmp_path / SAMPLES, images=np.arange(12, dtype=np.uint8).reshape(3, 1, 2, 2), labels=np.array([1, 0, 1]))
    np.savez(tmp_path / UNSPLIT_LABELS, labels=np.array([1, 1, 1]))
    write(tmp_path, manifest_of(tmp_path))
    return tmp_path


def edit(folder: Path, **changes: Any) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps({**content, **changes}))


def test_an_artefact_reads_back_as_it_was_written(folder: Path) -> None:
    artefact = Artefact(folder)
    assert artefact.manifest == manifest_of(folder)
    images, labels = artefact.samples
    assert images.shape == (3, 1, 2, 2) and images.dtype == np.uint8 and labels.tolist() == [1, 0, 1]
    assert artefact.unsplit_labels.tolist() == [1, 1, 1]
    assert artefact.latent.shape == (2, 1, 1)
    assert artefact.path(HEAD).read_bytes() == b"onnx"


def test_the_digest_does_not_depend_on_the_order_or_layout_of_the_manifest(folder: Path) -> None:
    before = Artefact(folder).manifest.digest
    content = json.loads((folder / MANIFEST).read_text())
    turned = {key: content[key] for key in reversed(content)}
    turned["files"] = {key: content["files"][key] for key in reversed(content["files"])}
    (folder / MANIFEST).write_text(json.dumps(turned, separators=(",", ":")))
    assert Artefact(folder).manifest.digest == before == manifest_of(folder).digest


def test_the_digest_is_the_same_in_another_process(folder: Path) -> None:
    code = "import sys; from pathlib import Path; from splitcore.artefact import Artefact\n"
    code += "print(Artefact(Path(sys.argv[1])).manifest.handshake)"
    said = subprocess.run([sys.executable, "-c", code, folder], capture_output=True, text=True, check=True, timeout=60)
    assert said.stdout.strip() == Artefact(folder).manifest.handshake


def test_any_other_file_or_parameter_gives_another_digest(folder: Path) -> None:
    manifest = Artefact(folder).manifest
    others = [
        manifest.model_copy(update={"files": {**manifest.files, HEAD: "0" * 64}}),
        manifest.model_copy(update={"cut": "conv1"}),
        manifest_of(folder, codec={"kind": "uniform", "bits": 5}),
        manifest_of(folder, latent={"shape": (2, 1, 1), "lo": (0.0, -1.0), "hi": (1.0, 1.0000001), "std": 0.5}),
    ]
    assert len({manifest.digest, *(other.digest for other in others)}) == 5


def test_an_altered_file_is_refused_with_both_hashes_and_what_to_do(folder: Path) -> None:
    (folder / TAIL).write_bytes(b"weightz")
    with pytest.raises(ArtefactError) as refusal:
        Artefact(folder).path(TAIL)
    text = str(refusal.value)
    assert TAIL in text and Artefact(folder).manifest.files[TAIL] in text and sha256(folder / TAIL) in text
    assert "train it again" in text
    (folder / SAMPLES).write_bytes(b"no longer a zip")
    with pytest.raises(ArtefactError, match=SAMPLES):
        _ = Artefact(folder).samples


def test_a_missing_file_is_refused_with_its_path_and_what_to_do(folder: Path) -> None:
    (folder / HEAD).unlink()
    with pytest.raises(ArtefactError, match=r"tiny: expected .*head\.onnx.*No such file.*copy the whole folder"):
        Artefact(folder).path(HEAD)
    with pytest.raises(ArtefactError, match=r"expected one of its files \['head\.onnx'.*got 'other'"):
        Artefact(folder).path("other")


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ArtefactError, match=r"expected an artefact in .*latentbed train"):
            Artefact(place)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"colour": "red"}, "colour"),
        ({"name": "../etc"}, "name"),
        ({"files": {"../passwd": "0" * 64}}, "files"),
        ({"files": {"sub/head.onnx": "0" * 64}}, "files"),
        ({"files": {"head.onnx": "abc"}}, "files"),
        ({"codec": {"kind": "uniform", "bits": 9}}, "codec"),
        ({"accuracy": float("nan")}, "accuracy"),
        ({"input_shape": [1, 2]}, "input_shape"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_manifest_with_an_unknown_key_or_another_schema_is_refused(folder: Path, changes: dict[str, Any], named: str) -> None:
    edit(folder, **changes)
    with pytest.raises(ArtefactError, match=r"expected a manifest of schema version 1 in .*latentbed train") as refusal:
        Artefact(folder)
    assert named in str(refusal.value)


@pytest.mark.parametrize(
    "latent",
    [
        {"shape": [2, 1, 1], "lo": [0.0], "hi": [1.0], "std": 1.0},
        {"shape": [1, 1, 1], "lo": [1000.0], "hi": [1000.00001], "std": 1.0},
        {"shape": [], "lo": [], "hi": [], "std": 1.0},
    ],
)
def test_a_latent_or_codec_that_cannot_be_is_an_artefact_error(folder: Path, latent: dict[str, Any]) -> None:
    edit(folder, latent=latent)
    with pytest.raises(ArtefactError, match="tiny: its latent or codec cannot be"):
        Artefact(folder)


def test_garbage_instead_of_a_manifest_is_refused(folder: Path) -> None:
    for garbage in (b"", b"{", b"\xff\xfe", b"null", b"[]"):
        (folder / MANIFEST).write_bytes(garbage)
        with pytest.raises(ArtefactError, match="expected a manifest"):
            Artefact(folder)


def test_a_handshake_between_two_artefacts_names_both_sides(folder: Path) -> None:
    ours = Artefact(folder).manifest.handshake
    longest = "n" * 64
    theirs = manifest_of(folder, name=longest).handshake
    agree(ours, ours, we="client", they="server")
    with pytest.raises(HandshakeError) as refusal:
        agree(ours, theirs, we="client", they="server")
    assert f"client holds artefact {ours}" in str(refusal.value)
    assert f"server holds {theirs}" in str(refusal.value), "the digest is not cut off, however long the name"


def test_a_manifest_that_does_not_fit_its_files_is_not_written(folder: Path) -> None:
    good = (folder / MANIFEST).read_bytes()
    wrong = manifest_of(folder, files={HEAD: "0" * 64})
    with pytest.raises(ArtefactError, match="expected sha256"):
        write(folder, wrong)
    assert (folder / MANIFEST).read_bytes() == good
    assert sorted(path.name for path in folder.iterdir()) == sorted([HEAD, MANIFEST, SAMPLES, TAIL, UNSPLIT_LABELS])


def test_a_reader_never_sees_half_a_manifest(folder: Path) -> None:
    """A process writes one manifest after another over the same name while this one reads."""
    code = """
import sys
from pathlib import Path
from splitcore.artefact import Artefact, write
folder = Path(sys.argv[1])
manifest = Artefact(folder).manifest
print("go", flush=True)
for i in range(80):
    write(folder, manifest.model_copy(update={"cut": "c" * (1 + i * 997 % 50_000)}))
"""
    with subprocess.Popen([sys.executable, "-c", code, folder], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"go\n"
        seen = set()
        while writer.poll() is None:
            seen.add(len(Artefact(folder).manifest.cut))
    assert writer.returncode == 0 and len(seen) > 1

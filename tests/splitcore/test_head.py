"""The head in ONNX Runtime: any batch size, clear refusals."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from splitcore.artefact import HEAD, Artefact
from splitcore.errors import ArtefactError
from splitcore.head import Head


@pytest.mark.parametrize("k", [1, 2, 7])
def test_the_head_takes_any_batch_size_and_a_latent_does_not_depend_on_its_batch(digits_artefact: Path, k: int) -> None:
    head = Head(digits_artefact)
    images, _ = head.artefact.samples
    latents = head.from_uint8(images[:k])
    assert latents.shape == (k, *head.latent.shape)
    assert latents.dtype == np.float32
    one_by_one = np.concatenate([head.from_uint8(images[i : i + 1]) for i in range(k)])
    np.testing.assert_allclose(latents, one_by_one, atol=1e-5)


def test_uint8_and_float_images_give_the_same_latents(digits_artefact: Path) -> None:
    head = Head(Artefact(digits_artefact), threads=2)
    images, _ = head.artefact.samples
    np.testing.assert_array_equal(head.from_uint8(images[:3]), head(images[:3].astype(np.float32) / np.float32(255)))


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 1, 8, 9), (0, 1, 8, 8), (1, 3, 8, 8)])
def test_images_of_another_shape_are_refused_with_both_shapes_named(digits_artefact: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtefactError, match=r"expected images \[k, 1, 8, 8\].*got"):
        Head(digits_artefact)(np.zeros(shape, np.float32))


def test_images_of_another_dtype_are_refused(digits_artefact: Path) -> None:
    head = Head(digits_artefact)
    with pytest.raises(ArtefactError, match="from_uint8"):
        head(np.zeros((1, 1, 8, 8), np.uint8))  # type: ignore[arg-type]
    with pytest.raises(ArtefactError, match="call the head itself"):
        head.from_uint8(np.zeros((1, 1, 8, 8), np.float32))  # type: ignore[arg-type]


def test_an_altered_head_is_refused(digits_artefact: Path, tmp_path: Path) -> None:
    folder = tmp_path / "altered"
    shutil.copytree(digits_artefact, folder)
    data = bytearray((folder / HEAD).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / HEAD).write_bytes(data)
    with pytest.raises(ArtefactError, match=r"expected sha256 .* for head.onnx"):
        Head(folder)

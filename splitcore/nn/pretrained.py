"""Published weights: one safetensors file for a network that is split here into head and tail. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from splitcore.artefact import sha256
from splitcore.data import data_folder
from splitcore.errors import DataError
from splitcore.nn.recipe import Pretrained
from splitcore.nn.split_model import SplitModel


def load_pretrained(model: SplitModel, pretrained: Pretrained, data_dir: Path | None = None) -> None:
    """The weights of a file in the data folder into head and tail. Raises DataError where it is absent or another."""
    path = data_folder(data_dir) / pretrained.file
    if not path.is_file():
        raise DataError(f"expected weights at {path}, there is no file: put it there, or say --data-dir or LATENTBED_DATA")
    got = sha256(path)
    if got != pretrained.sha256:
        raise DataError(f"{path}: expected sha256 {pretrained.sha256}, got {got}: these are not the recipe's weights")
    try:
        fill(model, load_file(path))
    except (SafetensorError, DataError) as error:
        raise DataError(f"{path}: {error}") from error


def fill(model: SplitModel, weights: dict[str, Tensor]) -> None:
    """Weights by name into head and tail, none missing and none left over. Raises DataError."""
    of_head = {name: weight for name, weight in weights.items() if name in model.head.state_dict()}
    of_tail = {name: weight for name, weight in weights.items() if name not in of_head}
    try:
        model.head.load_state_dict(of_head)
        model.tail.load_state_dict(of_tail)
    except RuntimeError as error:
        raise DataError(f"expected the names and shapes of this network: {error}") from error

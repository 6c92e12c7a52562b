"""Published weights: one file, safetensors or torch's own, for a network that is split here into head and tail.

Nothing is unpickled but tensors: torch.load(weights_only=True). What a recipe names by its sha256 is fetched from its `url`.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from splitcore.artefact import sha256
from splitcore.data import data_folder
from splitcore.data.download import fetch
from splitcore.errors import DataError
from splitcore.nn.recipe import Pretrained
from splitcore.nn.split_model import SplitModel

MAX_BYTES = 1 << 30
"""of a file of weights; VGG16 has 528 MiB"""


def load_pretrained(model: SplitModel, pretrained: Pretrained, data_dir: Path | None = None, *, progress: bool = True) -> None:
    """The weights of a file in the data folder into head and tail, fetched where it is absent. Raises DataError."""
    path = data_folder(data_dir) / pretrained.file

    def check(file: Path) -> None:
        got = sha256(file)
        if got != pretrained.sha256:
            raise DataError(f"{file}: expected sha256 {pretrained.sha256}, got {got}: these are not the recipe's weights")

    if not path.is_file():
        if pretrained.url is None:
            raise DataError(
                f"expected weights at {path}, there is no file: put it there, say --data-dir or LATENTBED_DATA, or give the "
                "recipe a `url`"
            )
        fetch((pretrained.url,), path, max_bytes=MAX_BYTES, check=check, progress=progress)
    check(path)
    try:
        fill(model, read_weights(path))
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Weights by name, on the CPU, from a file whose suffix says what it is. Raises DataError."""
    if path.suffix != ".safetensors":
        return _of_torch(path)
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError) as error:
        raise DataError(f"expected safetensors: {error}") from error


def fill(model: SplitModel, weights: dict[str, Tensor]) -> None:
    """Weights by name into head and tail, none missing and none left over. Raises DataError."""
    of_head = {name: weight for name, weight in weights.items() if name in model.head.state_dict()}
    of_tail = {name: weight for name, weight in weights.items() if name not in of_head}
    _load(model.head, of_head)
    _load(model.tail, of_tail)


def fill_rest(student: SplitModel, weights: dict[str, Tensor]) -> None:
    """A whole teacher's weights into what its student of `narrow` keeps of it, `tail.rest`. Raises DataError."""
    rest = student.tail.get_submodule("rest")
    _load(rest, {name: weight for name, weight in weights.items() if name in rest.state_dict()})


def _load(module: nn.Module, weights: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(weights)
    except RuntimeError as error:
        raise DataError(f"expected the names and shapes of this network: {error}") from error


def _of_torch(path: Path) -> dict[str, Tensor]:
    """A state dict, or a checkpoint that holds one as `state_dict`."""
    if zipfile.is_zipfile(path):
        _check_archive(path)
    try:
        loaded: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # anything may come out of a file that torch did not write
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"expected weights that torch saved, and nothing else in the file: {reason}") from error
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(key, str) and _plain(value) for key, value in loaded.items()):
        raise DataError(f"expected a state dict, dense tensors of real numbers by name, got {type(loaded).__name__}")
    return dict(loaded)


def _check_archive(path: Path) -> None:
    """torch stores without compression; a compressed archive may unpack to any size."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise DataError(f"expected an archive that torch wrote: {error}") from error
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries) or sum(e.file_size for e in entries) > MAX_BYTES:
        raise DataError(f"expected an archive that torch wrote, stored and of at most {MAX_BYTES} bytes")


def _plain(value: object) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.device.type == "cpu"
        and not (value.is_quantized or value.is_complex())
    )

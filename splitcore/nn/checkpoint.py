"""A training's state on disk, so that one that was killed goes on as if nothing had happened."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any, TypeAlias

import torch

from splitcore.errors import DataError

State: TypeAlias = dict[str, Any]
"""tensors, numbers, texts, and dicts and lists of them"""


class Checkpoint:
    """One file, replaced whole. `key` says what the state belongs to; what belongs to something else is not read."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self._key = path, key

    def load(self) -> State | None:
        """The last state that was saved, on the CPU; None where there is none of this key. Raises DataError."""
        if not self.path.is_file():
            return None
        try:
            loaded = torch.load(self.path, map_location="cpu", weights_only=True)
        except (RuntimeError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise DataError(f"expected a training's state in {self.path}, got a damaged file: remove it ({error})") from error
        return loaded["state"] if loaded["key"] == self._key else None

    def save(self, state: State) -> None:
        """Raises OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.path.with_name(self.path.name + ".new")
        with fresh.open("wb") as file:
            torch.save({"key": self._key, "state": state}, file)
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(self.path)

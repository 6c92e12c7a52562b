"""A network of anybody's as ONNX: a file in ONNX, a program of torch.export, or a torch module by its import path."""

from __future__ import annotations

import importlib
import zipfile
from pathlib import Path
from typing import Any

import onnx
import torch
from google.protobuf.message import DecodeError
from onnx import ModelProto
from torch import nn

from splitcore.errors import ScenarioError
from splitcore.nn.export import OPSET, quiet


def load(model: str, image: tuple[int, int, int] | None) -> ModelProto:
    """`file.onnx`, `file.pt2`, or `module:name` of an nn.Module or of what makes one. Raises ScenarioError.

    `image` [C, H, W] for a module; the others know it. A module is imported and run: it is the caller's own code.
    """
    path = Path(model)
    if ":" not in model and not path.is_file():
        raise ScenarioError(
            f"expected a file .onnx or .pt2, or module:name of a torch module, got {model}: "
            + ("that is a folder" if path.is_dir() else "there is no such file")
        )
    if path.suffix == ".onnx":
        try:
            return onnx.load(path)
        except (DecodeError, OSError) as error:
            raise ScenarioError(f"{path} is no network in ONNX: {error}") from error
    if path.suffix == ".pt2":
        try:
            program = torch.export.load(path)
        except (RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
            raise ScenarioError(f"{path} is no program of torch.export.save: {error}") from error
        return _exported(program, model)
    module, colon, name = model.partition(":")
    if not colon:
        raise ScenarioError(f"expected a file .onnx or .pt2, or module:name of a torch module, got {model}")
    if image is None:
        raise ScenarioError(f"expected the images' shape for {model}: say --image C,H,W")
    return _exported(_module(module, name).eval(), model, torch.zeros(2, *image))


def _module(module: str, name: str) -> nn.Module:
    try:
        found: Any = getattr(importlib.import_module(module), name)
        made = found if isinstance(found, nn.Module) else found()
    except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
        raise ScenarioError(f"{module}:{name} gives no torch module: {type(error).__name__}: {error}") from error
    if not isinstance(made, nn.Module):
        raise ScenarioError(f"expected a torch.nn.Module from {module}:{name}, got {type(made).__name__}")
    return made


def _exported(program: nn.Module | torch.export.ExportedProgram, what: str, example: torch.Tensor | None = None) -> ModelProto:
    """Not optimised: what normalisation or activation gives is still a tensor of its own, and can be cut at."""
    options: dict[str, Any] = {"opset_version": OPSET, "dynamo": True, "optimize": False, "verbose": False}
    if example is not None:
        options |= {"args": (example,), "dynamic_shapes": ({0: torch.export.Dim("batch")},)}
    try:
        with quiet():
            exported = torch.onnx.export(program, **options)
    except Exception as error:  # the exporter's exceptions share no base class but this
        raise ScenarioError(f"torch.onnx.export refuses {what}: {error}") from error
    assert exported is not None
    model: ModelProto = exported.model_proto
    return model

"""The edge's half: a tail rebuilt from an artefact's declared architecture and its weights. Nothing is unpickled.

A tail of `splitcore.nn` is data: a name and arguments. A tail of somebody's own is code, `module:factory`, and an artefact must
not choose what code runs where it is loaded: the module has to be named by whoever loads it, as a module or as a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from collections.abc import Collection
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from splitcore.artefact import TAIL, Architecture, Artefact
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.nn.net import NetConfig

_NET: TypeAdapter[NetConfig] = TypeAdapter(NetConfig)
_FACTORY = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<factory>[A-Za-z_]\w*)", re.ASCII)


def load_tail(artefact: Artefact | Path, device: torch.device | str = "cpu", trusted: Collection[str] = ()) -> nn.Module:
    """Latents [k, *shape] to logits [k, classes], in evaluation mode, weights frozen. Raises ArtefactError.

    `trusted`: whose code may run, for tails that are not of splitcore.nn: names of modules, or files `path/module.py`.
    """
    if isinstance(artefact, Path):
        artefact = Artefact(artefact)
    manifest = artefact.manifest
    try:
        if ":" in manifest.tail.net:
            tail = build_own(manifest.tail, trusted)
        else:
            net = _NET.validate_python({"kind": manifest.tail.net, **manifest.tail.arguments})
            tail = net.tail(manifest.latent.shape, len(manifest.classes))
    except (ValidationError, ScenarioError) as error:
        raise ArtefactError(f"artefact {manifest.name}: no network here is as its tail declares: {error}") from error
    except ArtefactError as error:
        raise ArtefactError(f"artefact {manifest.name}: {error}") from error
    try:
        tail.load_state_dict(load_file(artefact.path(TAIL)))
    except (SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"artefact {manifest.name}: {TAIL} does not fit the declared architecture: {error}") from error
    return tail.requires_grad_(False).eval().to(device)


def build_own(architecture: Architecture, trusted: Collection[str]) -> nn.Module:
    """What the factory of a trusted module makes of the arguments, with fresh weights. Raises ArtefactError."""
    name, arguments = architecture.net, architecture.arguments
    match = _FACTORY.fullmatch(name)
    if match is None:
        raise ArtefactError(f"expected a tail `module:factory`, got {name[:120]!r}: export it again")
    factory = getattr(_module(match["module"], trusted), match["factory"], None)
    # what the module merely imports was not written to be called with an artefact's arguments: `os.system` may be among it
    if not callable(factory) or getattr(factory, "__module__", None) not in (match["module"], _name_of(match["module"])):
        raise ArtefactError(f"expected a class or function {match['factory']} defined in module {match['module']}, found none")
    try:
        tail: Any = factory(**arguments)
    except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
        raise ArtefactError(f"tail {name} cannot be built from {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(tail, nn.Module):
        raise ArtefactError(f"expected a torch.nn.Module from {name}, got {type(tail).__name__}")
    return tail


def _module(name: str, trusted: Collection[str]) -> ModuleType:
    files = [Path(entry) for entry in trusted if entry.endswith(".py") and Path(entry).stem == name]
    if not files and name not in trusted:
        raise ArtefactError(
            f"expected a trusted module for its tail, got {name!r}, trusted are {sorted(trusted) or 'none'}: its code would "
            f"run here. Read it, then say --trust path/to/{name.rpartition('.')[2]}.py or --trust {name} to the edge server, "
            "`edge: {trust: [...]}` in a scenario"
        )
    try:
        return _run_file(_name_of(name), files[0]) if files else importlib.import_module(name)
    except Exception as error:  # likewise
        where = str(files[0]) if files else f"module {name}"
        raise ArtefactError(
            f"expected code for its tail in {where}, importing it gave {type(error).__name__}: {error}: "
            "install what it needs, name the file itself, or set PYTHONPATH"
        ) from error


def _name_of(name: str) -> str:
    """A file's module goes by a name of its own, so that `json.py` replaces nobody's `json`."""
    return f"latentbed_trusted_{name}"


def _run_file(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look there for the module of a class
    spec.loader.exec_module(module)
    return module

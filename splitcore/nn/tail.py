"""The edge's half: a tail rebuilt from an artefact's declared architecture and its weights. Nothing is unpickled.

A tail of `splitcore.nn` is data: a name and arguments. A tail of somebody's own is code, `module:factory`, and an artefact must
not choose what code runs where it is loaded: the module has to be named by whoever loads it, as a module or as a file.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from splitcore.artefact import ONNX_TAIL, TAIL, Architecture, Artefact
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.nn.net import NetConfig
from splitcore.trust import own_code

_NET: TypeAdapter[NetConfig] = TypeAdapter(NetConfig)


def load_tail(artefact: Artefact | Path, device: torch.device | str = "cpu", trusted: Collection[str] = ()) -> nn.Module:
    """Latents [k, *shape] to logits [k, classes], in evaluation mode, weights frozen. Raises ArtefactError.

    `trusted`: whose code may run, for tails that are not of splitcore.nn: names of modules, or files `path/module.py`.
    """
    if isinstance(artefact, Path):
        artefact = Artefact(artefact)
    manifest = artefact.manifest
    try:
        if manifest.tail.net == "onnx":
            raise ArtefactError(f"expected a tail in torch, got one in {ONNX_TAIL}: it has no torch module")
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
    factory = own_code(name, trusted, noun="tail", node="edge server", wrong=ArtefactError)
    try:
        tail: Any = factory(**arguments)
    except Exception as error:  # anything may come out of somebody's own code; the message keeps what it was
        raise ArtefactError(f"tail {name} cannot be built from {arguments}: {type(error).__name__}: {error}") from error
    if not isinstance(tail, nn.Module):
        raise ArtefactError(f"expected a torch.nn.Module from {name}, got {type(tail).__name__}")
    return tail

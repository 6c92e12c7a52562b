"""The edge's half: a tail rebuilt from an artefact's declared architecture and its weights. Nothing is unpickled."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from splitcore.artefact import TAIL, Artefact
from splitcore.errors import ArtefactError, ScenarioError
from splitcore.nn.net import NetConfig

_NET: TypeAdapter[NetConfig] = TypeAdapter(NetConfig)


def load_tail(artefact: Artefact | Path, device: torch.device | str = "cpu") -> nn.Module:
    """Latents [k, *shape] to logits [k, classes], in evaluation mode, weights frozen. Raises ArtefactError."""
    if isinstance(artefact, Path):
        artefact = Artefact(artefact)
    manifest = artefact.manifest
    try:
        net = _NET.validate_python({"kind": manifest.tail.net, **manifest.tail.arguments})
        tail = net.tail(manifest.latent.shape, len(manifest.classes))
    except (ValidationError, ScenarioError) as error:
        raise ArtefactError(f"artefact {manifest.name}: no network here is as its tail declares: {error}") from error
    try:
        tail.load_state_dict(load_file(artefact.path(TAIL)))
    except (SafetensorError, RuntimeError) as error:
        raise ArtefactError(f"artefact {manifest.name}: {TAIL} does not fit the declared architecture: {error}") from error
    return tail.requires_grad_(False).eval().to(device)

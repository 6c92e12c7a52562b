"""`python -m splitcore.nn.tail_onnx ARTEFACT FILE`: an artefact's tail as ONNX, for servers that are none of ours.

`latent` float32 [batch, *shape] to `logits` [batch, classes], any batch size, one file.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch

from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.errors import LatentbedError
from splitcore.nn.export import OPSET, quiet
from splitcore.nn.tail import load_tail


def write_tail(artefact: Artefact, path: Path) -> None:
    """Raises ArtefactError."""
    if artefact.manifest.tail.net == "onnx":
        shutil.copyfile(artefact.path(ONNX_TAIL), path)
        return
    # torch.export fixes a dimension of size 1, so the example batch is 2
    example = torch.zeros(2, *artefact.latent.shape)
    with quiet():
        program = torch.onnx.export(
            load_tail(artefact),
            (example,),
            input_names=["latent"],
            output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.save(str(path), external_data=False)


if __name__ == "__main__":
    try:
        write_tail(Artefact(Path(sys.argv[1])), Path(sys.argv[2]))
    except (LatentbedError, OSError, IndexError) as error:
        sys.exit(f"tail_onnx: {error}: expected an artefact's folder and a file to write")

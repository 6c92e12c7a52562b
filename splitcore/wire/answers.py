"""A foreign model's answer as scores and labels, whatever it calls them and in whatever numbers it gives them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitcore.errors import WireError
from splitcore.frame import Reply
from splitcore.latent import F32
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire import tensors
from splitcore.wire.described import Reads


def reply_of(response: pb.ModelInferResponse, error: str | None, *, output: str, reads: Reads, batched: bool) -> Reply:
    """`output`: the one that counts; empty: the first that reads as scores, and the first as labels. Raises WireError."""

    def refuse(text: str) -> WireError:
        return WireError(text, frame_id=response.id)

    scores: F32 | None = None
    labels: NDArray[np.int64] | None = None
    raws = tensors.entries(response.outputs, response.raw_output_contents, refuse)
    for tensor, raw in zip(response.outputs, raws, strict=True):
        if output not in ("", tensor.name) or (tensor.datatype != "BYTES" and tensor.datatype not in tensors.NUMBERS):
            continue
        kind = _kind(tensor, batched) if reads == "auto" else reads
        if kind == "scores" and scores is None:
            scores = _rows_of_scores(tensors.numbers(tensor, raw, refuse))
            if np.isnan(scores).any():
                raise refuse(f"expected scores in output {tensor.name[:64]!r}, got NaN: the server's model is at fault")
        elif kind == "labels" and labels is None:
            labels = tensors.numbers(tensor, raw, refuse).reshape(-1).astype(np.int64)
    if error is None and scores is None and labels is None:
        there = [(tensor.name[:64], tensor.datatype, list(tensor.shape)[:8]) for tensor in response.outputs][:8]
        raise refuse(f"expected an output that is scores or labels, got {there}: say which by --output and --reads")
    return Reply(
        id=response.id, scores=scores, labels=labels, error=error, model=response.model_name, version=response.model_version
    )


def _kind(tensor: pb.ModelInferResponse.InferOutputTensor, batched: bool) -> Reads | None:
    """Floats [k, classes] are scores, whole numbers and texts [k] or [k, 1] labels; dimensions of one do not count."""
    shape = [n for n in (tensor.shape[1:] if batched else tensor.shape) if n != 1]
    if tensor.datatype.startswith("FP"):
        return "scores" if len(shape) == 1 else None
    return "labels" if not shape and tensor.datatype != "BOOL" else None


def _rows_of_scores(array: NDArray[Any]) -> F32:
    """[k, classes] of [k, classes], with ones anywhere, or of [classes]."""
    rows = len(array) if array.ndim > 1 else 1
    scores: F32 = array.reshape(rows, -1).astype(np.float32)
    return scores

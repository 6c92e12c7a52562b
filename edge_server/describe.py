"""What this server says of itself and of its models, in the protocol's names: the same dictionaries over gRPC and REST."""

from __future__ import annotations

import dataclasses
import importlib.metadata
from collections.abc import Mapping
from enum import Enum
from typing import Any

from edge_server.metrics import Counts, Stages
from edge_server.models import Model, Models
from edge_server.queue import BatchSettings
from edge_server.repository import VersionPolicy
from splitcore.artefact import ONNX_TAIL, TAIL
from splitcore.codec import fit
from splitcore.wire import oip

EXTENSIONS = (
    "binary_tensor_data", "model_configuration", "model_repository", "parameters", "schedule_policy", "statistics",
)  # fmt: skip
"""Triton's names of what we have beyond the protocol's core"""
_BATCHER = (
    "preferred_batch_size", "max_queue_delay_microseconds", "preserve_ordering", "priority_levels", "default_priority_level",
)  # fmt: skip
_QUEUE = ("timeout_action", "default_timeout_microseconds", "allow_timeout_override", "max_queue_size")


class Describe:
    """Reads the table of models; changes nothing."""

    def __init__(self, models: Models, settings: BatchSettings, policy: VersionPolicy, *, labels_only: bool) -> None:
        self._models, self._settings, self._policy, self._labels_only = models, settings, policy, labels_only

    def server(self) -> dict[str, Any]:
        return {
            "name": "latentbed",
            "version": importlib.metadata.version("latentbed"),
            "extensions": list(EXTENSIONS),
        }

    def model(self, model: Model) -> oip.ModelMetadata:
        """Of a model as the one version has it; with the names of all its versions."""
        manifest = model.artefact.manifest
        outputs = (
            oip.TensorMetadata(oip.SCORES, "FP32", (-1, len(manifest.classes))),
            oip.TensorMetadata(oip.LABEL, "INT64", (-1,)),
        )
        return oip.ModelMetadata(
            name=manifest.name,
            versions=tuple(sorted(self._models.versions(manifest.name), key=int)),
            platform=platform(model),
            inputs=(oip.TensorMetadata(oip.INPUT, "FP32", (-1, *manifest.latent.shape)),),
            outputs=outputs[1:] if self._labels_only else outputs,
        )

    def config(self, model: Model) -> dict[str, Any]:
        """Triton's ModelConfig. Sizes are without the first dimension, the rows."""
        manifest = model.artefact.manifest
        scores = {"name": oip.SCORES, "data_type": "TYPE_FP32", "dims": [len(manifest.classes)]}
        # one integer a row, and no dimension for it
        label = {"name": oip.LABEL, "data_type": "TYPE_INT64", "dims": [1], "reshape": {"shape": []}}
        batcher, others = batching(self._settings)
        on_gpu = model.tail.device.startswith("cuda")
        says = {
            "cut": manifest.cut,
            "approach": manifest.approach,
            "codec": fit(manifest.codec, model.artefact.latent).name,
            "artefact": model.handshake,
            "device": model.tail.device,
            **others,
        }
        return {
            "name": manifest.name,
            "platform": platform(model),
            "backend": "latentbed",
            "version_policy": self._policy.config(),
            "max_batch_size": self._settings.max_batch_size,
            "input": [{"name": oip.INPUT, "data_type": "TYPE_FP32", "dims": list(manifest.latent.shape)}],
            "output": [label] if self._labels_only else [scores, label],
            "instance_group": [
                {"name": f"{manifest.name}_0", "kind": "KIND_GPU" if on_gpu else "KIND_CPU", "count": 1,
                 "gpus": [0] if on_gpu else []}
            ],
            "default_model_filename": ONNX_TAIL if manifest.tail.net == "onnx" else TAIL,
            "dynamic_batching": batcher,
            "model_transaction_policy": {"decoupled": False},
            "parameters": {key: {"string_value": value} for key, value in says.items()},
        }  # fmt: skip

    def statistics(self, name: str, version: str) -> dict[str, Any]:
        """Triton's ModelStatisticsResponse; without a name of all models, without a version of all versions. Raises Refused."""
        if name:
            found = self._models.find(name, version)
            models = [found] if version else list(self._models.versions(name).values())
        else:
            models = list(self._models)
        return {"model_stats": [_statistics(model.name, model.version, model.counts) for model in models]}

    def index(self, *, ready: bool) -> list[dict[str, str]]:
        """Every model and version that was ever asked for, or those that are ready."""
        return [
            {"name": name, "version": version, "state": state, "reason": reason}
            for (name, version), (state, reason) in sorted(self._models.states.items())
            if state == "READY" or not ready
        ]


def platform(model: Model) -> str:
    """What computes it, as Triton's `platform`."""
    return "latentbed_onnx" if model.artefact.manifest.tail.net == "onnx" else "latentbed_torch"


def batching(settings: BatchSettings) -> tuple[dict[str, Any], dict[str, str]]:
    """(Triton's ModelDynamicBatching, every setting that it has no field for, as text)."""
    plain = {key: _plain(value) for key, value in dataclasses.asdict(settings).items() if value is not None}
    policy = {key: plain.pop(key) for key in _QUEUE if key in plain}
    batcher = {key: plain.pop(key) for key in _BATCHER if key in plain}
    plain.pop("max_batch_size", None)  # a field of the model's own
    if "timeout_action" in policy:
        policy["timeout_action"] = str(policy["timeout_action"]).upper()
    return {**batcher, "default_queue_policy": policy}, {key: str(value) for key, value in plain.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    return list(value) if isinstance(value, tuple) else value


def _statistics(name: str, version: str, counts: Counts) -> dict[str, Any]:
    requests = counts.requests
    return {
        "name": name,
        "version": version,
        "last_inference": counts.last_inference_ms,
        "inference_count": counts.rows,
        "execution_count": counts.executions,
        "inference_stats": {
            "success": _duration(counts.success, counts.request_ns),
            "fail": _duration(sum(counts.failures.values()), counts.failed_ns),
            "queue": _duration(counts.success, counts.queue_ns),
            **_stages(requests),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [{"batch_size": rows, **_stages(stages)} for rows, stages in sorted(counts.batches.items())],
    }


def _stages(stages: Stages) -> dict[str, Mapping[str, int]]:
    return {
        "compute_input": _duration(stages.count, stages.input_ns),
        "compute_infer": _duration(stages.count, stages.infer_ns),
        "compute_output": _duration(stages.count, stages.output_ns),
    }


def _duration(count: int, ns: int) -> Mapping[str, int]:
    return {"count": count, "ns": ns}

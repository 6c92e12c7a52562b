"""Every candidate measured on this device: cuts and image through live nodes, beside them the whole network on the phone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from splitcore.artefact import FLOAT32, Artefact
from splitcore.codec import CodecConfig, fit
from splitcore.codec.uniform import Uniform
from splitcore.frame import Reply
from splitcore.prepared import Prepared
from splitcore.wire import oip
from testbed.envelope import envelope_bytes
from testbed.plan.here import Whole, from_jpeg, timed_ms, to_jpeg
from testbed.plan.live import NodeOptions, Timed, timed
from testbed.plan.model import Accuracy, Candidate, Stages
from testbed.plan.predict import framed_bytes, quantiles_of, spread_of

LOSSLESS = Uniform(bits=8, per="tensor", zstd=True)
"""what the image is sent with: its own 256 values, through Zstandard"""
LIVE = "phone and edge on one machine, a link of delay alone between them, which is taken off"


@dataclass(frozen=True, kw_only=True)
class Effort:
    """How long is measured."""

    frames: int = 200
    """that are timed"""
    samples: int = 500
    """by which accuracy and bytes are told, at most; of the artefact's"""
    jpeg: int = 90
    """quality of the image as JPEG, on libjpeg's scale"""


class Measurement:
    """All candidates of what was prepared, in the order of the work that the phone has with them."""

    def __init__(self, prepared: Prepared, states: Path, options: NodeOptions, effort: Effort) -> None:
        self._prepared, self._states, self._options, self._effort = prepared, states, options, effort
        self.whole = Artefact(Path(prepared.whole))
        images, labels = self.whole.samples
        self._images, self._labels = images[: effort.samples], labels[: effort.samples]
        self.edge_device = ""
        self.floor_ms = math.inf

    def __len__(self) -> int:
        return 2 + len(self._prepared.cuts) + self._has_jpeg

    @property
    def _has_jpeg(self) -> bool:
        return len(self._images[0]) in (1, 3)

    def candidates(self) -> Iterator[Candidate]:
        """One after another; raises LatentbedError."""
        network = Whole(self.whole, self._options.phone_threads)
        truth = network.all(self._images)
        sent = self._timed(self.whole, LOSSLESS, replace(self._options, head=FLOAT32))
        yield self._live("image, lossless", "image", self.whole, LOSSLESS, sent, truth)
        if self._has_jpeg:
            yield self._jpeg(network, sent, truth)
        for made in self._prepared.cuts:
            artefact = Artefact(Path(made.folder))
            codec = artefact.manifest.codec
            yield self._live(made.name, "cut", artefact, codec, self._timed(artefact, codec, self._options), truth)
        yield self._phone(network, truth)

    def _timed(self, artefact: Artefact, codec: CodecConfig, options: NodeOptions) -> Timed:
        state = self._states / artefact.folder.name
        found = timed(artefact, state, options, codec, frames=self._effort.frames, samples=len(self._images))
        self.edge_device, self.floor_ms = found.device, min(self.floor_ms, found.floor_ms)
        return found

    def _live(
        self, name: str, kind: Any, artefact: Artefact, codec: CodecConfig, found: Timed, truth: NDArray[np.int64]
    ) -> Candidate:
        manifest = artefact.manifest
        request = float(np.mean([row["bytes_up"] for row in found.shown]))
        reply = reply_bytes(found.shown[-1]["id"], manifest.name, len(manifest.classes))
        coder = fit(codec, artefact.latent)
        return Candidate(
            name=name, kind=kind, cut=manifest.cut, latent=manifest.latent.shape, codec=coder.name,
            folder=str(artefact.folder), measured=LIVE,
            payload_bytes=request - mean_envelope_bytes(found.shown, artefact, coder.name, max(0, round(request) - 100)),
            request_bytes=request, reply_bytes=reply, up_bytes=framed_bytes(request), down_bytes=framed_bytes(reply),
            stages_ms=stages_of(found.stages_ms), total_ms=quantiles_of(found.stages_ms["total"]),
            frames=len(found.frames), accuracy=self._accuracy(_labels(found.shown), truth),
        )  # fmt: skip

    def _jpeg(self, network: Whole, sent: Timed, truth: NDArray[np.int64]) -> Candidate:
        """No codec of the wire is a colour JPEG: its bytes and times are Pillow's, everything else the lossless image's."""
        images, quality = self._images, self._effort.jpeg
        encode_ms, _ = timed_ms(self._effort.frames, len(images), lambda n: to_jpeg(images[n], quality))
        coded = [to_jpeg(image, quality) for image in images]
        decode_ms, _ = timed_ms(self._effort.frames, len(images), lambda n: from_jpeg(coded[n]))
        seen = network.all(np.stack([from_jpeg(data) for data in coded]))
        payload = float(np.mean([len(data) for data in coded]))
        name = self.whole.manifest.name
        reply = reply_bytes(sent.shown[-1]["id"], name, len(self.whole.manifest.classes))
        request = payload + mean_envelope_bytes(sent.shown, self.whole, f"jpeg{quality}", round(payload))
        stages = {**sent.stages_ms, "encode": encode_ms, "decode": decode_ms}
        swapped = zip(sent.stages_ms["encode"], sent.stages_ms["decode"], encode_ms, decode_ms, strict=True)
        total = [
            whole - mine - theirs + encode + decode
            for whole, (mine, theirs, encode, decode) in zip(sent.stages_ms["total"], swapped, strict=True)
        ]
        rest = rest_of(sent.stages_ms)
        return Candidate(
            name=f"image, jpeg{quality}", kind="image", cut="image", latent=self.whole.manifest.latent.shape,
            codec=f"Pillow's JPEG, quality {quality}", folder=None,
            measured=f"the lossless image's way ({LIVE}) with Pillow's encode, decode and bytes in place of its codec's",
            payload_bytes=payload, request_bytes=request, reply_bytes=reply, up_bytes=framed_bytes(request),
            down_bytes=framed_bytes(reply), stages_ms=stages_of(stages, rest), total_ms=quantiles_of(total),
            frames=len(total), accuracy=self._accuracy(seen, truth),
        )  # fmt: skip

    def _phone(self, network: Whole, truth: NDArray[np.int64]) -> Candidate:
        images = self._images
        head_ms, _ = timed_ms(self._effort.frames, len(images), lambda n: network(images[n : n + 1]))
        nothing = [0.0] * len(head_ms)
        stages = {"head": head_ms, "encode": nothing, "decode": nothing, "tail": nothing, "total": head_ms}
        return Candidate(
            name="all on the phone", kind="phone", cut="logits", latent=(len(self.whole.manifest.classes),), codec="none",
            folder=None, measured="ONNX Runtime with the phone's threads, in this process", payload_bytes=0, request_bytes=0,
            reply_bytes=0, up_bytes=0, down_bytes=0, stages_ms=stages_of(stages), total_ms=quantiles_of(head_ms),
            frames=len(head_ms), accuracy=self._accuracy(truth, truth),
        )  # fmt: skip

    def _accuracy(self, labels: NDArray[np.int64], truth: NDArray[np.int64]) -> Accuracy:
        return Accuracy(value=float(np.mean(labels == self._labels)), agreement=float(np.mean(labels == truth)), n=len(labels))


def rest_of(stages_ms: dict[str, list[float]]) -> list[float]:
    """What of each frame's total is in none of the four stages."""
    parts = [stages_ms[name] for name in ("head", "encode", "decode", "tail")]
    return [total - sum(own) for total, own in zip(stages_ms["total"], zip(*parts, strict=True), strict=True)]


def stages_of(stages_ms: dict[str, list[float]], rest_ms: Sequence[float] | None = None) -> Stages:
    """Percentiles of each."""
    given = {name: stages_ms[name] for name in ("head", "encode", "decode", "tail")}
    rest = rest_of(stages_ms) if rest_ms is None else rest_ms
    return Stages.model_validate({name: spread_of(times).model_dump() for name, times in {**given, "rest": rest}.items()})


def reply_bytes(frame: str, model: str, classes: int) -> float:
    """Of the streamed answer to a frame of this id, as the edge writes it: logits and label."""
    scores = np.zeros((1, classes), np.float32)
    reply = Reply(id=frame, scores=scores, labels=np.zeros(1, np.int64), model=model, version="1")
    return float(len(oip.pack_stream_reply(reply)))


def mean_envelope_bytes(rows: Sequence[dict[str, Any]], artefact: Artefact, codec: str, about: int) -> float:
    """What of the requests is not the payload, where that has about so many bytes: mean of the frames."""
    return float(np.mean([envelope_bytes(artefact, codec, row["id"], about) for row in rows]))


def _labels(rows: Sequence[dict[str, Any]]) -> NDArray[np.int64]:
    return np.array([row["predicted"] for row in rows], np.int64)

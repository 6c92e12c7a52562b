"""What needs no edge: the whole network on the phone, an image as JPEG, and what this machine is."""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from splitcore.artefact import ONNX_TAIL, Artefact
from splitcore.errors import ArtefactError
from splitcore.head import as_unit
from splitcore.onnx_session import open_session
from testbed.plan.live import FIRST, WAITING, NodeOptions
from testbed.plan.model import Device

U8: TypeAlias = NDArray[np.uint8]
Labels: TypeAlias = NDArray[np.int64]
T = TypeVar("T")
ROWS = 64


class Whole:
    """The whole network in ONNX Runtime with the phone's threads: images uint8 to labels."""

    def __init__(self, artefact: Artefact, threads: int) -> None:
        path = artefact.path(ONNX_TAIL)
        self._session = open_session(path, path, ArtefactError, threads=threads)

    def __call__(self, images: U8) -> Labels:
        logits = self._session.run(["logits"], {"latent": as_unit(images)})[0]
        labels: Labels = np.asarray(logits).argmax(axis=1).astype(np.int64)
        return labels

    def all(self, images: U8) -> Labels:
        """[n], a few at a time."""
        return np.concatenate([self(images[at : at + ROWS]) for at in range(0, len(images), ROWS)])


def timed_ms(frames: int, count: int, once: Callable[[int], T]) -> tuple[list[float], list[T]]:
    """What `once` of frame 0, 1, ... took and gave; a frame shows sample n modulo `count`. The first few do not count.

    Between frames it rests as long as those of a phone that sends do.
    """
    times, given = [], []
    for frame in range(frames + FIRST):
        time.sleep(2 * WAITING.delay_ms / 1000)
        started = time.perf_counter_ns()
        result = once(frame % count)
        times.append((time.perf_counter_ns() - started) / 1e6)
        given.append(result)
    return times[FIRST:], given[FIRST:]


def to_jpeg(image: U8, quality: int) -> bytes:
    """Baseline JPEG of an image [1 or 3, H, W], as Pillow writes it: colour at half the resolution (4:2:0)."""
    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    out = io.BytesIO()
    picture.save(out, "JPEG", quality=quality)
    return out.getvalue()


def from_jpeg(data: bytes) -> U8:
    """The inverse, [1 or 3, H, W]."""
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as picture:
        pixels = np.asarray(picture, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def device(options: NodeOptions, edge_device: str) -> Device:
    """This machine, and how its nodes were started."""
    facts = {
        "cpu": _cpu(), "cores": os.cpu_count() or 1, "platform": platform.platform(),
        "onnxruntime": str(onnxruntime.__version__), "phone_threads": options.phone_threads,
        "edge_threads": options.edge_threads, "edge_device": edge_device,
    }  # fmt: skip
    known_by = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
    return Device.model_validate({"id": known_by, **facts})


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    # ARM kernels give no name, but the part's number
    for key in ("model name", "Model", "Hardware", "CPU part"):
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key and value.strip():
                return f"{value.strip()} ({platform.machine()})"
    return platform.machine()

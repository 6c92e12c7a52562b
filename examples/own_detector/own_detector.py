"""A detector of one's own: clients show one thing after another, so rows that lie close together are somebody's search."""

from typing import Annotated, Literal

import numpy as np
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

from edge_server.detectors import Action


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Close:
    kind: Literal["close"] = "close"  # its name in the log, the metrics and the report
    action: Action = "reject"
    within: Annotated[float, Field(gt=0)] = 0.1
    """distance below which two latents are too close: root mean square over their values, in std of the calibration set"""
    keep: Annotated[int, Field(ge=1, le=10_000)] = 500
    """latents that are remembered"""

    def for_model(self, latent):  # latent: shape, ranges and std of what the model's head gives
        return Watch(self.keep, self.within * latent.std * np.sqrt(latent.elements), latent.elements)


class Watch:
    """One model's: `look` is called with its batches in the order in which they are computed."""

    def __init__(self, keep: int, radius: float, elements: int) -> None:
        self.kept, self.radius = np.empty((keep, elements), np.float32), radius
        self.forget()

    def forget(self) -> None:
        self.seen = 0

    def look(self, latents, requests):  # [rows, *shape]; requests say who asked, when, and for how many of the rows
        detected = {}
        for row, z in enumerate(latents.reshape(len(latents), -1)):
            distance = np.sqrt(np.square(self.kept[: self.seen] - z).sum(axis=1)).min(initial=np.inf)
            if distance == 0:
                continue  # the very same latent: a frame that was sent again, or that was asked about before it came
            if distance < self.radius:
                detected[row] = f"{distance:.3g} from an earlier one"
            self.kept[self.seen % len(self.kept)] = z
            self.seen += 1
        return detected

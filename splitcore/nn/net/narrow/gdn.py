"""GDN1: a divisive normalisation across channels, of plain operations that ONNX has.

Ballé, Laparra, Simoncelli, "Density Modeling of Images using a Generalized Normalization Transformation", ICLR 2016 (arXiv
1511.06281); simplified to exponents of 1 by Johnston, Eban, Gordon, Ballé, "Computationally Efficient Neural Image Compression"
(arXiv 1912.08771), eq. 3: y_i = x_i / (beta_i + sum_j gamma_ij |x_j|). The inverse multiplies.

Departure: beta and gamma are squares, so they need no projection to stay positive; Ballé et al. clip the roots.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

BETA_MIN = 1e-6
GAMMA = 0.1
"""initial weight of a channel on itself, Ballé et al.'s"""
ROOT_MIN = 2.0**-18
"""initial root of the other weights: at 0 a square has no gradient"""


class Gdn1(nn.Module):
    """[k, C, H, W] to the same."""

    def __init__(self, channels: int, *, inverse: bool = False) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        """root, [C]"""
        self.gamma = nn.Parameter((GAMMA * torch.eye(channels)).sqrt().clamp(min=ROOT_MIN))
        """root, [C, C]"""

    def forward(self, x: Tensor) -> Tensor:
        gamma, beta = self.gamma * self.gamma, self.beta * self.beta + BETA_MIN
        norm = functional.conv2d(x.abs(), gamma[:, :, None, None], beta)
        return x * norm if self.inverse else x / norm

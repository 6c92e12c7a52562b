"""`entropy`: a learned factorised density a channel, noise in its place while training, rounding and integer tables after.

Ballé et al., "Variational image compression with a scale hyperprior", ICLR 2018, section 2: training on additive uniform
noise, the density of a channel convolved with a box of one step as F(y + 1/2) - F(y - 1/2). Departure: F is a mixture of
logistics (Salimans et al., PixelCNN++, ICLR 2017, eq. 2) and not the monotone network of Ballé's appendix 6.1: three
parameters a component, monotone by construction, and tails that fall off by themselves. Loss: task + beta·`bits()`
(Matsubara et al., WACV 2022).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from splitcore.codec import CodecConfig
from splitcore.codec.base import STRICT
from splitcore.codec.entropy import Entropy
from splitcore.codec.prior import HIGHEST, LOWEST, MAX_SYMBOLS, Prior
from splitcore.errors import ScenarioError
from splitcore.latent import LatentSpec
from splitcore.nn.bottleneck.base import Bottleneck, straight_through

LEAST = 1e-9
"""no symbol is less probable than that in the rate term, so that its gradient stays finite (CompressAI's bound)"""
TAIL = 1e-6
"""mass at either end of a density that is left to the escape"""


@dataclass(frozen=True, kw_only=True, config=STRICT)
class EntropyBottleneck:
    """Latents on integers, and how many bits they cost."""

    kind: Literal["entropy"] = "entropy"
    channels: Annotated[int, Field(ge=1)] = 24
    """of the latent [C, ...]; the entropic student's 24"""
    step: Annotated[float, Field(ge=1e-6, le=30)] = 1.0
    """distance between neighbouring values; the head learns its own scale, so 1 does"""
    components: Annotated[int, Field(ge=1, le=16)] = 3
    """logistics in the mixture of a channel; ours"""
    beta: Annotated[float, Field(ge=0)] = 0.0
    """β: what a bit of a latent's costs in the loss; larger ones make shorter payloads"""
    spread: Annotated[float, Field(gt=0)] = 10.0
    """how wide the density is before training, in steps; CompressAI's 10"""

    def build(self) -> Bottleneck:
        return FactorisedPrior(self)


class FactorisedPrior(Bottleneck):
    """While training z + step·U(-1/2, 1/2), else the nearest multiple of `step`, as EntropyCodec.snap; [k, C, ...] both."""

    def __init__(self, config: EntropyBottleneck) -> None:
        super().__init__()
        shape = (config.channels, config.components)
        self._codec = Entropy()
        self._step = float(torch.tensor(config.step))
        self._beta = config.beta
        self._channels = config.channels
        self._frozen = False
        self._bits: Tensor | None = None
        at = torch.linspace(-1, 1, config.components) if config.components > 1 else torch.zeros(1)
        self.weight = nn.Parameter(torch.zeros(shape))
        self.centre = nn.Parameter((at * config.spread / 2).repeat(config.channels, 1))
        self.log_scale = nn.Parameter(torch.full(shape, math.log(config.spread / 4)))

    def codec_config(self) -> CodecConfig:
        return self._codec

    def forward(self, z: Tensor) -> Tensor:
        if z.shape[1] != self._channels:
            raise ScenarioError(
                f"expected latents of {self._channels} channels in the entropy bottleneck, got {z.shape[1]}: "
                "say the head's number as `channels`"
            )
        step = z.new_tensor(self._step)  # a tensor: some devices divide by a number as times its reciprocal
        if self.training and not self._frozen:
            y = z / step + (torch.rand_like(z) - 0.5)
            self._bits = self.cost(y)
            return y * step
        inside = (z / step).clamp(LOWEST, HIGHEST)
        symbols = torch.round(inside) + 0  # no -0: the stream has none
        self._bits = self.cost(symbols)
        return straight_through(symbols * step, inside * step)

    def bits(self) -> Tensor:
        """[k]: what the latents of the last forward pass cost by the density, differentiable: the rate term."""
        assert self._bits is not None, "expected a forward pass before its bits are asked for"
        return self._bits

    def penalty(self) -> Tensor | float:
        return self._beta * self.bits().mean() if self._beta else 0.0

    def cost(self, y: Tensor) -> Tensor:
        """-log2 p of symbols or noisy ones [k, C, ...], summed to [k]."""
        flat = y.reshape(len(y), y.shape[1], -1, 1)
        return -torch.log2(self._mass(flat).clamp_min(LEAST)).sum((1, 2))

    def _mass(self, y: Tensor) -> Tensor:
        """Probability of the box of one step around y [..., C, n, 1], [..., C, n]."""
        weight, centre, scale = (
            p.unsqueeze(1).to(y.dtype) for p in (self.weight.softmax(-1), self.centre, self.log_scale.exp())
        )
        upper, lower = (y + 0.5 - centre) / scale, (y - 0.5 - centre) / scale
        # both on the side where the logistic function is near 0 and not near 1: a difference of ones would be rounded away
        side = torch.where(upper + lower > 0, -1.0, 1.0).to(y.dtype)
        each = (torch.sigmoid(side * upper) - torch.sigmoid(side * lower)).abs()
        return (weight * each).sum(-1)

    @torch.no_grad()
    def freeze(self, latent: LatentSpec) -> LatentSpec:
        """The density as integer tables over the calibrated range, less its tails; `latent` with them."""
        masses, offset = [], []
        for c in range(latent.channels):
            first = max(round(latent.lo[c] / self._step), LOWEST)
            last = min(round(latent.hi[c] / self._step), HIGHEST)
            y = torch.arange(first, max(last, first) + 1, device=self.centre.device, dtype=torch.float64)
            mass = self._mass(y[:, None])[c]
            above = mass.flip(0).cumsum(0).flip(0)
            kept = ((mass.cumsum(0) > TAIL) & (above > TAIL)).nonzero().flatten()
            # the mode, where the density has nothing in the calibrated range
            begin, end = (int(kept[0]), int(kept[-1]) + 1) if len(kept) else (int(mass.argmax()), int(mass.argmax()) + 1)
            if end - begin > MAX_SYMBOLS:
                begin = max(begin, min(int(mass.argmax()) - MAX_SYMBOLS // 2, end - MAX_SYMBOLS))
                end = begin + MAX_SYMBOLS
            masses.append(mass[begin:end].clamp_min(1e-12).cpu().numpy())
            offset.append(first + begin)
        prior = Prior.of(masses, offset, [self._step] * latent.channels, rare=2 * TAIL)
        self._codec = Entropy(prior=prior.hash)
        self._frozen = True
        return dataclasses.replace(latent, prior=prior)

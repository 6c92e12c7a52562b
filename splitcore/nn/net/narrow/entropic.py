"""`entropic`: the Entropic Student's encoder and decoder, whose rounded latents an entropy coder makes small.

Matsubara, Yang, Levorato, Mandt, "Supervised Compression for Resource-Constrained Edge Computing Systems", WACV 2022 (arXiv
2108.11898), section 4, with the factorised prior. For 224x224 and a ResNet-50 cut after layer1 the latent is b x 55x55, b = 24.

Smaller images are ours: where the teacher's latent is half as high as the image, the second convolution has stride 1.
"""

from __future__ import annotations

from torch import nn

from splitcore.nn.net.narrow.form import Size
from splitcore.nn.net.narrow.gdn import Gdn1

STRIDES = {4: (2, 2), 2: (2, 1), 1: (1, 1)}


def encoder(size: Size) -> list[nn.Module]:
    """Raises ValueError for a cut whose latent is not 1, 1/2 or 1/4 as high as the image."""
    b = size.b
    if size.ratio not in STRIDES:
        raise ValueError(f"its encoder halves height and width up to twice, the teacher's latent is 1/{size.ratio} as high")
    first, second = STRIDES[size.ratio]
    return [
        nn.Conv2d(size.image, 4 * b, 5, first, 2, bias=False), Gdn1(4 * b),
        nn.Conv2d(4 * b, 2 * b, 5, second, 2, bias=False), Gdn1(2 * b),
        nn.Conv2d(2 * b, b, 2, bias=False),
    ]  # fmt: skip


def decoder(size: Size) -> list[nn.Module]:
    w = size.width
    return [
        nn.Conv2d(size.b, 2 * w, 2, padding=1, bias=False), Gdn1(2 * w, inverse=True),
        nn.Conv2d(2 * w, w, 2, bias=False), Gdn1(w, inverse=True),
        nn.Conv2d(w, size.out, 2, padding=1, bias=False),
    ]  # fmt: skip

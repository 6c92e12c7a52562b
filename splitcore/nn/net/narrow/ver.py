"""`ver1`, `ver2`, `ver3`: the bottlenecks of BottleFit, three depths at which the same stack of layers narrows.

Matsubara, Callegaro, Singh, Levorato, Restuccia, "BottleFit", WoWMoM 2022 (arXiv 2201.02693), after Matsubara et al., "Head
Network Distillation", IEEE Access 8 (2020). For 224x224 and a ResNet cut after layer2 the latents are b x 56x56, 29x29, 15x15.
ver2 and ver3 end on a raw convolution, so their latents are signed. 2x2 convolutions with padding give the odd sides.
"""

from __future__ import annotations

from torch import nn

from splitcore.nn.net.narrow.form import Size, conv, stem, stem_width


def encoder1(size: Size) -> list[nn.Module]:
    return stem(size.image, size.b, size.ratio // 2)


def decoder1(size: Size) -> list[nn.Module]:
    b = size.b
    narrow = [nn.BatchNorm2d(b), nn.ReLU(), *conv(b, 64, 2, stride=2, padding=1), nn.ReLU()]
    return [*narrow, nn.Conv2d(64, size.width, 2, padding=1, bias=False), *_rest(size)]


def encoder2(size: Size) -> list[nn.Module]:
    return [*_wide_stem(size), nn.Conv2d(stem_width(size.ratio // 2), size.b, 2, 2, 1, bias=False)]


def decoder2(size: Size) -> list[nn.Module]:
    b = size.b
    return [nn.BatchNorm2d(b), nn.ReLU(), nn.Conv2d(b, size.width, 2, padding=1, bias=False), *_rest(size)]


def encoder3(size: Size) -> list[nn.Module]:
    w = size.width
    further = [*conv(stem_width(size.ratio // 2), w, 2, stride=2, padding=1), nn.ReLU()]
    return [*_wide_stem(size), *further, nn.Conv2d(w, size.b, 2, 2, 1, bias=False)]


def decoder3(size: Size) -> list[nn.Module]:
    b = size.b
    return [nn.BatchNorm2d(b), nn.ReLU(), nn.ConvTranspose2d(b, size.width, 2, 2, bias=False), *_rest(size)]


def _wide_stem(size: Size) -> list[nn.Module]:
    ratio = size.ratio // 2
    # normalised and cut at 0 a second time, as published
    return [*stem(size.image, stem_width(ratio), ratio), nn.BatchNorm2d(stem_width(ratio)), nn.ReLU()]


def _rest(size: Size) -> list[nn.Module]:
    """Three more convolutions and an average, [k, w, n + 1, n + 1] to [k, out, n - 1, n - 1]."""
    w = size.width
    return [
        nn.BatchNorm2d(w), nn.ReLU(),
        *conv(w, w, 2, padding=1), nn.ReLU(),
        *conv(w, w, 2), nn.ReLU(),
        nn.Conv2d(w, size.out, 2, bias=False), nn.AvgPool2d(2, 1),
    ]  # fmt: skip

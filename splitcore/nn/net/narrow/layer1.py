"""`layer1`: the student of "channel reduction and bottleneck quantisation" (CR+BQ, also GHND-BQ), for 8 bits an element.

Matsubara, Yang, Levorato, Mandt, "SC2 Benchmark: Supervised Compression for Split Computing", TMLR 2023 (arXiv 2203.08875). For
224x224 and a ResNet-50 cut after layer1 the latent is b x 60x60 and signed. Pinned by its layers, not by the benchmark's name
for it, which has come to mean another stack.
"""

from __future__ import annotations

from torch import nn

from splitcore.nn.net.narrow.form import Size, conv, stem, stem_width


def encoder(size: Size) -> list[nn.Module]:
    s = stem_width(size.ratio)
    return [
        *stem(size.image, s, size.ratio),
        *conv(s, s, 2, padding=1),
        *conv(s, 4 * s, 2, padding=1), nn.ReLU(),
        *conv(4 * s, s, 2, padding=1),
        nn.Conv2d(s, size.b, 2, padding=1, bias=False),
    ]  # fmt: skip


def decoder(size: Size) -> list[nn.Module]:
    w = size.width
    return [
        nn.BatchNorm2d(size.b), nn.ReLU(),
        *conv(size.b, w // 4, 2),
        *conv(w // 4, w // 2, 2), nn.ReLU(),
        *conv(w // 2, w, 2),
        *conv(w, size.out, 2), nn.ReLU(),
    ]  # fmt: skip

"""`vgg16_fc`: VGG16-bn with a narrow convolution at 112x112 in place of blocks 1 to 3; `vgg16_fc_lite`: ours, at 28x28.

Zhang, Abdi, Ashdown, Restuccia, "Adversarial Attacks to Latent Representations of Distributed Neural Networks in Split
Computing" (arXiv 2309.17401), and its code for the layers. The teacher is cut after pool3. As published the head keeps VGG's
first block, 2.0 GMAC, and b = 12 sends as many elements as the image has; the lite form has a 28th of that work and a 16th of
the elements.
"""

from __future__ import annotations

from torch import nn

from splitcore.nn.net.narrow.form import Size, conv


def encoder(size: Size) -> list[nn.Module]:
    block1 = [*_conv(size.image, 64), *_conv(64, 64), nn.MaxPool2d(2)]
    return [*block1, nn.Conv2d(64, size.b, 3, padding=1)]


def decoder(size: Size) -> list[nn.Module]:
    b, w = size.b, size.width
    block2 = [nn.BatchNorm2d(b), nn.ReLU(), *_conv(b, w // 2), nn.MaxPool2d(2)]
    block3 = [*_conv(w // 2, w), *_conv(w, w), *_conv(w, size.out), nn.MaxPool2d(2)]
    return [*block2, *block3]


def lite_encoder(size: Size) -> list[nn.Module]:
    return [
        *conv(size.image, 32, 3, stride=2, padding=1), nn.ReLU(),
        *conv(32, 64, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(64, size.b, 2, 2, bias=False),
    ]  # fmt: skip


def lite_decoder(size: Size) -> list[nn.Module]:
    b, w = size.b, size.width
    return [nn.BatchNorm2d(b), nn.ReLU(), *_conv(b, w), *_conv(w, w), *_conv(w, size.out)]


def _conv(fan_in: int, fan_out: int) -> list[nn.Module]:
    return [nn.Conv2d(fan_in, fan_out, 3, padding=1), nn.BatchNorm2d(fan_out), nn.ReLU()]

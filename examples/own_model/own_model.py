"""Attack your own model: train it as you like, export its two halves, let `latentbed run` do the rest.

A small MLP-Mixer (Tolstikhin et al., arXiv 2105.01601) on scikit-learn's digits, cut after its first block. The edge runs this
file to build `Tail`, so what only training needs is imported in `main`.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor, nn

ARTEFACT = Path(__file__).resolve().parents[2] / "runs" / "artefacts" / "own-mixer"
ARGUMENTS = {"tokens": 16, "latent": 8, "width": 48, "classes": 10}


class Block(nn.Module):
    """[k, tokens, width] to the same: one perceptron over the tokens, one over the width."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.over_tokens = nn.Sequential(nn.Linear(tokens, 2 * tokens), nn.GELU(), nn.Linear(2 * tokens, tokens))
        self.over_width = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(self.norms[0](x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_width(self.norms[1](x))


class Head(nn.Module):
    """Images [k, 1, 8, 8] in [0, 1] to latents [k, tokens, latent]: patches of 2x2, one block, a narrow layer."""

    def __init__(self, tokens: int, latent: int, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)
        self.blocks = nn.Sequential(Block(tokens, width), nn.Linear(width, latent))

    def forward(self, images: Tensor) -> Tensor:
        return self.blocks(self.patches(images).flatten(2).transpose(1, 2))


class Tail(nn.Module):
    """Latents [k, tokens, latent] to logits [k, classes]. The edge calls it with ARGUMENTS and loads the weights."""

    def __init__(self, tokens: int, latent: int, width: int, classes: int) -> None:
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(latent, width), Block(tokens, width), nn.LayerNorm(width))
        self.classifier = nn.Linear(width, classes)

    def forward(self, z: Tensor) -> Tensor:
        return self.classifier(self.blocks(z).mean(1))


def main(folder: Path = ARTEFACT) -> None:
    from splitcore.data import load
    from splitcore.nn.bottleneck import UniformBottleneck
    from splitcore.nn.export import export_split

    torch.manual_seed(0)
    train, test = load("digits", "train"), load("digits", "test")  # any images uint8 [n, C, H, W] with labels [n]
    x, y = torch.from_numpy(train.images) / 255, torch.from_numpy(train.labels)
    bottleneck = UniformBottleneck(bits=6, per="tensor").build()  # the codec, as training sees it
    head, tail = Head(16, 8, 48), Tail(**ARGUMENTS)
    model = nn.Sequential(head, bottleneck, tail)
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    for rows in (rows for _ in range(20) for rows in torch.randperm(len(x)).split(128)):
        model.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
    artefact = export_split(
        head, bottleneck, tail, name="own-mixer", tail_factory="own_model:Tail", tail_arguments=ARGUMENTS, dataset="digits",
        calibration=train.images, samples=(test.images, test.labels), classes=test.classes, folder=folder,
    )  # fmt: skip
    print(f"{folder}: {artefact.manifest.accuracy:.1%} of {len(test)} held-out images right, unsplit")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

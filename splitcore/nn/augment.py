"""Augmentation: training images [k, C, H, W], moved and mirrored."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def augment(images: Tensor, how: str, rng: torch.Generator) -> Tensor:
    """Each image [k, C, H, W] shifted by up to an eighth of its side, black moving in, and mirrored half the time."""
    if how == "none":
        return images
    k, _, height, width = images.shape
    pad = max(1, height // 8)
    padded = nn.functional.pad(images, (pad, pad, pad, pad))
    dy, dx = torch.randint(0, 2 * pad + 1, (2, k, 1), generator=rng)
    rows, columns = dy + torch.arange(height), dx + torch.arange(width)
    if how == "shift_flip":
        mirrored = torch.rand(k, 1, generator=rng) < 0.5
        columns = torch.where(mirrored, columns.flip(1), columns)
    rows, columns = rows.to(images.device), columns.to(images.device)
    which = torch.arange(k, device=images.device)
    return padded[which[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)

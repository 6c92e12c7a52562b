"""A surrogate: a small network trained to answer as a tail does, from latents and answers alone, and its gradients.

Papernot, McDaniel, Goodfellow, Jha, Celik, Swami, "Practical Black-Box Attacks against Machine Learning", AsiaCCS 2017, without
their synthetic queries: the answers are what was seen. The network and its training are ours: convolutions without
normalisation layers, AdamW with a one-cycle schedule, inputs blurred by Gaussian noise.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from splitcore.latent import F32
from splitcore.nn.training import pick_device, set_threads

LARGEST_SIDE = 8
"""of the map that the last layer sees: convolutions have stride 2 until then"""


class Surrogate:
    """Logits and gradients of a trained network, arrays in and out; it pickles."""

    def __init__(self, net: nn.Module, device: str = "cpu") -> None:
        self.device = pick_device(device)
        self.net = net.to(self.device).requires_grad_(False).eval()
        self._classes = 0

    def logits(self, points: F32) -> F32:
        """Points [k, *shape] to logits [k, classes]."""
        with torch.inference_mode():
            return cast(F32, self.net(self._tensor(points)).cpu().numpy())

    def loss_gradient(self, points: F32, labels: NDArray[np.int64]) -> tuple[F32, F32]:
        """Cross-entropy [k] of points [k, *shape] at `labels` [k], and the gradient of each by its own point [k, *shape]."""
        x = self._tensor(points).requires_grad_()
        loss = nn.functional.cross_entropy(self.net(x), torch.from_numpy(labels).to(self.device), reduction="none")
        (gradient,) = torch.autograd.grad(loss.sum(), x)
        return loss.detach().cpu().numpy(), gradient.cpu().numpy()

    def jacobian(self, point: F32) -> tuple[F32, F32]:
        """Logits [classes] at one point [*shape], and the gradient of each [classes, *shape]."""
        self._classes = self._classes or self.logits(point[None]).shape[1]
        x = self._tensor(np.broadcast_to(point, (self._classes, *point.shape))).requires_grad_()
        logits = self.net(x)
        (gradient,) = torch.autograd.grad(logits.diagonal().sum(), x)
        return logits[0].detach().cpu().numpy(), gradient.cpu().numpy()

    def _tensor(self, points: F32) -> Tensor:
        # a copy: what a codec decoded may be read-only, which tensors cannot be
        return torch.from_numpy(np.array(points, np.float32)).to(self.device)


class SmallNet(nn.Module):
    """Latents [k, *shape] of any shape to logits [k, classes]."""

    mean: Tensor
    std: Tensor

    def __init__(self, like: Tensor, classes: int, width: int) -> None:
        """`like` [n, *shape]: the latents that it will be trained on; their moments are its normalisation."""
        super().__init__()
        planes = as_planes(like)
        _, channels, height, breadth = planes.shape
        std, mean = torch.std_mean(planes, (0, 2, 3), correction=0, keepdim=True)
        self.register_buffer("mean", mean)
        # a dead channel, or one latent alone, is divided by a little of what the others have
        floor = max(1e-2 * float(like.std(correction=0)), 1e-6)
        self.register_buffer("std", std.clamp_min(floor))
        layers: list[nn.Module] = []
        while len(layers) < 4 or max(height, breadth) > LARGEST_SIDE:
            kernel = 3 if height > 1 else 1, 3 if breadth > 1 else 1
            stride = 2 if height > LARGEST_SIDE else 1, 2 if breadth > LARGEST_SIDE else 1
            layers += [nn.Conv2d(channels, width, kernel, stride, (kernel[0] // 2, kernel[1] // 2)), nn.ReLU()]
            channels, height, breadth = width, -(-height // stride[0]), -(-breadth // stride[1])
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, classes))

    def forward(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """`noise` [k, C, H, W]: added after normalisation."""
        seen = (as_planes(x) - self.mean) / self.std
        logits: Tensor = self.layers(seen if noise is None else seen + noise)
        return logits


class Ensemble(nn.Module):
    """The mean of several nets' logits (Dong et al., CVPR 2018, section 3.2)."""

    def __init__(self, nets: list[nn.Module]) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nets)

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([net(x) for net in self.nets]).mean(dim=0)


def as_planes(x: Tensor) -> Tensor:
    """Latents [k, *shape] as [k, C, H, W]: vectors are maps of one place, tokens [t, d] have d channels along t."""
    if x.ndim == 3:
        return x.transpose(1, 2)[..., None]
    return x.reshape(len(x), x.shape[1], x.shape[2] if x.ndim > 3 else 1, -1)


def fit(
    points: F32, answers: F32, *, members: int, width: int, epochs: int, batch: int, lr: float, weight_decay: float,
    noise: float, seed: int, device: str = "cpu"
) -> Surrogate:  # fmt: skip
    """From points [n, *shape] and the probabilities that were answered [n, classes]. Same arguments, same machine, same net.

    `members`: nets from different first weights and orders, whose logits are averaged. `noise`: standard deviation of what is
    added to a point each time that it is shown, in units of its channel's own.
    """
    where = pick_device(device)
    cuda = [where] if where.type == "cuda" else []
    x, y = torch.from_numpy(np.array(points, np.float32)), torch.from_numpy(answers)
    nets: list[nn.Module] = []
    with torch.random.fork_rng(devices=cuda), torch.backends.cudnn.flags(deterministic=True, benchmark=False), set_threads(1):
        for member in range(members):
            own = int(np.random.SeedSequence([seed, member]).generate_state(1, np.uint64)[0])
            torch.manual_seed(own)
            net = SmallNet(x, y.shape[1], width).to(where).train()
            order = torch.Generator().manual_seed(own)
            _train(net, x.to(where), y.to(where), epochs, batch, lr, weight_decay, noise, order)
            nets.append(net)
    return Surrogate(Ensemble(nets), device)


def _train(
    net: SmallNet, x: Tensor, y: Tensor, epochs: int, batch: int, lr: float, weight_decay: float, noise: float,
    rng: torch.Generator
) -> None:  # fmt: skip
    planes = as_planes(x[:1]).shape[1:]
    optimiser = torch.optim.AdamW(net.parameters(), lr, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, lr, total_steps=-(-len(x) // batch) * epochs)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=rng), batch):
            blur = noise * torch.randn((len(rows), *planes), generator=rng).to(x.device)
            rows = rows.to(x.device)
            loss = nn.functional.cross_entropy(net(x[rows], blur), y[rows])
            optimiser.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()

"""`match`: head network distillation (HND), the decoder's output towards the teacher's latent, and what follows likewise.

Matsubara et al., "Distilled Split Deep Neural Networks for Edge-Assisted Real-Time Systems", MobiCom workshops 2019, and
"Head Network Distillation", IEEE Access 8 (2020): the squared error at the decoder. With later stages of the network beside it
(generalised, GHND): Matsubara and Levorato, "Neural Compression and Filtering for Edge-assisted Real-time Object Detection in
Challenged Networks", ICPR 2020; the first stage of BottleFit (arXiv 2201.02693) and of the Entropic Student (arXiv 2108.11898).

Departure: squares are summed over an image, as there, but averaged over the images, so that neither the learning rate nor β
depends on the batch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from splitcore.codec.base import STRICT
from splitcore.errors import ScenarioError
from splitcore.nn.objective.base import Terms
from splitcore.nn.split_model import SplitModel


@dataclass(frozen=True, kw_only=True, config=STRICT)
class Match:
    """Σ (student - teacher)² after the decoder, and after named parts of the rest."""

    needs_teacher: ClassVar[bool] = True
    kind: Literal["match"] = "match"
    after: tuple[Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_.]*$")], ...] = ()
    """further parts by their names in the teacher's tail, as layer3: their outputs, with weight 1 each; none: HND"""

    def terms(self, model: SplitModel, teacher: SplitModel | None, x: Tensor, labels: Tensor) -> Terms:
        assert teacher is not None
        decoder, rest = (model.tail.get_submodule(name) for name in ("decoder", "rest"))
        with torch.no_grad():
            theirs = teacher.head(x)
        ours = decoder(model.received(x))
        terms = {"decoder": squared_error(ours, theirs)}
        if self.after:
            with outputs(rest, self.after) as of_ours, outputs(teacher.tail, self.after) as of_theirs:
                rest(ours)
                with torch.no_grad():
                    teacher.tail(theirs)
            terms |= {name: squared_error(of_ours[name], of_theirs[name]) for name in self.after}
        return terms


def squared_error(ours: Tensor, theirs: Tensor) -> Tensor:
    """Of [k, ...], summed over an image, averaged over the k."""
    return (ours.float() - theirs.float()).square().sum() / len(ours)


@contextlib.contextmanager
def outputs(net: nn.Module, names: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
    """What the named parts of `net` compute in the body's forward pass. Raises ScenarioError."""
    seen: dict[str, Tensor] = {}
    handles = []
    try:
        for name in names:
            try:
                part = net.get_submodule(name)
            except AttributeError as error:
                there = ", ".join(child for child, _ in net.named_children())
                raise ScenarioError(f"match: expected parts of the teacher's tail in `after`, {there}, got {name!r}") from error
            handles.append(part.register_forward_hook(lambda _m, _x, y, name=name: seen.__setitem__(name, y)))
        yield seen
    finally:
        for handle in handles:
            handle.remove()

"""The loop: a model through the stages of its training, going on from a checkpoint where there is one."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from splitcore.errors import ScenarioError
from splitcore.nn.augment import augment
from splitcore.nn.checkpoint import Checkpoint, State
from splitcore.nn.objective import Terms
from splitcore.nn.split_model import SplitModel, as_unit
from splitcore.nn.stage import Stage

KEPT_EVERY_S = 30.0
"""between two checkpoints; what a kill costs at most"""
SAID_EVERY_S = 10.0
"""between two lines where there is no terminal for a bar"""


class Fit:
    """One training. Its state is all that decides what comes next: weights, optimiser, schedule, random streams, order."""

    def __init__(
        self, model: SplitModel, teacher: SplitModel | None, images: Tensor, labels: Tensor, *, seed: int, moved: str,
        checkpoint: Checkpoint | None = None, bf16: bool = False,
    ) -> None:  # fmt: skip
        """Images uint8 [n, C, H, W] and labels [n] on the model's device; `moved`: how they are augmented."""
        self._model, self._teacher = model, teacher
        self._images, self._labels, self._moved = images, labels, moved
        self._order = torch.Generator().manual_seed(seed)
        self._left = self._shuffled()
        self._checkpoint, self._bf16 = checkpoint, bf16
        self._saved = None if checkpoint is None else checkpoint.load()
        self._kept_s = self._said_s = time.monotonic()
        if teacher is not None:
            teacher.eval().requires_grad_(False)

    def run(self, stages: Sequence[Stage], name: str, *, progress: bool) -> None:
        """Through all `stages`, or those that the checkpoint does not have. Raises ScenarioError for a loss that is none."""
        first = 0
        if self._saved is not None:
            first = self._restore(self._saved)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"),
                   TimeRemainingColumn())  # fmt: skip
        console = Console(stderr=True)
        if not console.is_terminal:
            console.width = 120
        with Progress(*columns, console=console, disable=not progress) as bar:
            for at, stage in enumerate(stages[first:], first):
                of = f", stage {at + 1} of {len(stages)}" if len(stages) > 1 else ""
                self._stage(at, stage, f"training {name}{of}", bar)
        self._model.requires_grad_(True)

    def _stage(self, at: int, stage: Stage, title: str, bar: Progress) -> None:
        n = len(self._images)
        # batch normalisation needs two images, so a last batch of one is left to the next epoch's order
        steps = n // stage.batch + (n % stage.batch > 1)
        optimiser = stage.optimiser_of(stage.parameters_of(self._model))
        schedule = stage.schedule_of(optimiser, steps)
        first, self._saved, saved = 0, None, self._saved
        if saved is not None and saved["optimiser"] is not None:
            first = saved["epoch"]
            optimiser.load_state_dict(saved["optimiser"])
            schedule.load_state_dict(saved["schedule"])
        task = bar.add_task(title, total=steps * stage.epochs, completed=schedule.last_epoch, loss="")
        terms: Terms = {}
        for epoch in range(first, stage.epochs):
            while len(self._left) > 1:
                rows, self._left = self._left[: stage.batch], self._left[stage.batch :]
                terms = self._step(stage, rows.to(self._images.device), optimiser)
                schedule.step()
                bar.advance(task)
                if self._checkpoint is not None and time.monotonic() - self._kept_s > KEPT_EVERY_S:
                    _said(terms, stage)
                    self._keep(at, epoch, {"optimiser": optimiser.state_dict(), "schedule": schedule.state_dict()})
            said = _said(terms, stage) if terms else ""
            bar.update(task, loss=said)
            if not (bar.disable or bar.console.is_terminal) and time.monotonic() - self._said_s > SAID_EVERY_S:
                self._said_s = time.monotonic()
                bar.console.print(f"{title}: epoch {epoch + 1} of {stage.epochs}: {said}", highlight=False, soft_wrap=True)
            self._left = self._shuffled()
        self._keep(at + 1, 0, {"optimiser": None, "schedule": None})

    def _step(self, stage: Stage, rows: Tensor, optimiser: torch.optim.Optimizer) -> Terms:
        x = augment(self._images[rows], self._moved, self._order)
        pixels = as_unit(x).contiguous(memory_format=torch.channels_last)
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self._bf16):
            terms = stage.objective.terms(self._model, self._teacher, pixels, self._labels[rows])
        penalty = self._model.bottleneck.penalty()
        if isinstance(penalty, Tensor) and penalty.requires_grad:
            terms["rate"] = penalty
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(torch.stack(list(terms.values())).sum())
        optimiser.step()
        return terms

    def _shuffled(self) -> Tensor:
        return torch.randperm(len(self._images), generator=self._order)

    def _keep(self, stage: int, epoch: int, of_stage: State) -> None:
        """What comes next is batch `left` of `epoch` of `stage`."""
        if self._checkpoint is None:
            return
        state = {
            "stage": stage, "epoch": epoch, "left": self._left.clone(), "model": self._model.state_dict(),
            "order": self._order.get_state(), "torch": torch.get_rng_state(), **of_stage,
        }  # fmt: skip
        if self._images.is_cuda:
            state["cuda"] = torch.cuda.get_rng_state(self._images.device)
        self._checkpoint.save(state)
        self._kept_s = time.monotonic()

    def _restore(self, state: State) -> int:
        """Everything but the optimiser and its schedule; the stage to go on with."""
        self._model.load_state_dict(state["model"])
        self._left = state["left"]
        self._order.set_state(state["order"])
        torch.set_rng_state(state["torch"])
        if "cuda" in state:
            torch.cuda.set_rng_state(state["cuda"], self._images.device)
        return int(state["stage"])


def _said(terms: Terms, stage: Stage) -> str:
    """Raises ScenarioError where the loss is no number: nothing is kept of such a training."""
    values = {name: float(term.detach()) for name, term in terms.items()}
    if not all(math.isfinite(value) for value in values.values()):
        raise ScenarioError(f"expected a finite loss, got {values}: lower the learning rate of the stage, {stage.lr:g}")
    return " + ".join(f"{name} {value:.3g}" for name, value in values.items())

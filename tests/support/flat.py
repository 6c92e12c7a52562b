"""Attacks on a linear tail, where the distance to the boundary is known in closed form."""

from __future__ import annotations

from pathlib import Path

from tails import LinearTail, attack_all, clean_latents, identity, wire_spaces

from adversary.attacks import Attack
from adversary.attacks.noise import Noise
from splitcore.threat import Norm, ThreatModel


def fallen(attack: Attack, norm: Norm, folder: Path, *, within: float, budget: int, n: int = 8, classes: int = 5) -> int:
    """How many of n samples fall within `within` times the closed form; none may fall short of it."""
    codec = identity((8, 4, 4))
    tail = LinearTail(codec, classes=classes)
    latents = clean_latents(codec, n)
    fell = 0
    for number, space in enumerate(wire_spaces(codec, latents)):
        least = tail.to_boundary(latents[number], norm)
        beyond = ThreatModel(norm=norm, eps=least * within, eps_unit="absolute", budget=budget)
        short = ThreatModel(norm=norm, eps=least * 0.995, eps_unit="absolute", budget=300)
        fell += attack_all(tail, attack, beyond, {number: space}, folder / f"{number}a")[number].success
        assert not attack_all(tail, attack, short, {number: space}, folder / f"{number}b")[number].success
    return fell


def near_meant_and_blind(attack: Attack, norm: Norm, folder: Path, targeted: Attack | None = None) -> tuple[int, int, int]:
    """Of 8 samples: how many fall within 1.15 times the closed form, how many become the class that is least likely (by
    `targeted`, or the same attack, in a wide ball), and how many noise turns in the near one."""
    codec = identity((8, 4, 4))
    tail = LinearTail(codec)
    latents = clean_latents(codec, 8)
    fell = meant = blind = 0
    for number, space in enumerate(wire_spaces(codec, latents)):
        scores = tail.scores(latents[number : number + 1])[0]
        y, target = int(scores.argmax()), int(scores.argmin())
        eps = tail.to_boundary(latents[number], norm) * 1.15
        near = ThreatModel(norm=norm, eps=eps, eps_unit="absolute", budget=2500)
        fell += attack_all(tail, attack, near, {number: space}, folder / f"a{number}")[number].success
        [noise] = attack_all(tail, Noise(), near, {number: space}, folder / f"n{number}").values()
        assert noise.payload is not None
        blind += int(tail.scores(codec.decode([noise.payload])).argmax()) != y
        wide = ThreatModel(norm=norm, eps=1.0 if norm == "linf" else 10.0, eps_unit="absolute", budget=2500, target=target)
        outcome = attack_all(tail, targeted or attack, wide, {number: space}, folder / f"b{number}")[number]
        meant += outcome.success and outcome.predicted == target
    return fell, meant, blind

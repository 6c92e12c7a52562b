"""What coverage-guided fuzzing starts from, and what it once found, as plain tests: `make fuzz` looks for more."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from fuzzing import TARGETS
from mutation import mutated

FOUND = Path(__file__).parent / "found"
KEPT = [(name, path) for name in TARGETS for path in sorted((FOUND / name).glob("*"))]


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_and_a_few_hundred_mutations_of_them_hold(name: str) -> None:
    target, rng = TARGETS[name], random.Random(name)
    for data in target.seeds:
        target.check(data)
    for _ in range(200):
        target.check(mutated(rng.choice(target.seeds), rng, target.seeds)[: target.max_bytes])


@pytest.mark.parametrize(("name", "path"), KEPT, ids=[f"{name}-{path.name}" for name, path in KEPT])
def test_what_was_found_is_mended(name: str, path: Path) -> None:
    TARGETS[name].check(path.read_bytes())

"""The prediction held against the real thing: a phone and an edge over the shaped link."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

from splitcore.artefact import FLOAT32, Artefact
from splitcore.codec import parse
from splitcore.errors import ScenarioError
from testbed.plan.live import FIRST, NodeOptions, fresh, pair
from testbed.plan.model import Candidate, Check, LinkPlan, Plan
from testbed.plan.predict import spread_of

WARM = 50
SEED = 1
"""of the shaper's draws: another than the prediction's"""


def wanted(plan: Plan, which: str) -> list[tuple[Candidate, LinkPlan]]:
    """What `--check` names: `best`, `all`, or a candidate. Raises ScenarioError."""
    known = {candidate.name: candidate for candidate in plan.profile.candidates}
    served = [candidate for candidate in plan.profile.candidates if candidate.folder is not None]
    if which == "all":
        return [(candidate, over) for over in plan.links for candidate in served]
    if which == "best":
        return [(known[over.best_sent], over) for over in plan.links]
    if which not in [candidate.name for candidate in served]:
        raise ScenarioError(
            f"expected --check best, all, or a candidate that the edge serves ({', '.join(one.name for one in served)}), "
            f"got {which!r}"
        )
    return [(known[which], over) for over in plan.links]


def checks(pairs: Sequence[tuple[Candidate, LinkPlan]], states: Path, options: NodeOptions, frames: int) -> Iterator[Check]:
    """One after another. Raises LatentbedError."""
    for candidate, over in pairs:
        yield check(candidate, over, states / "check", options, frames)


def check(candidate: Candidate, over: LinkPlan, state: Path, options: NodeOptions, frames: int) -> Check:
    """The stream of one phone, one frame in flight, through the link that the plan is for."""
    assert candidate.folder is not None
    artefact = Artefact(Path(candidate.folder))
    fresh(state)
    if candidate.kind == "image":
        options = dataclasses.replace(options, head=FLOAT32)  # the whole network's head is no network
    with pair(artefact.folder, state, options) as nodes:
        codec = parse(candidate.codec)
        # the nodes are as warm as they were when they were measured
        nodes.frames(WARM, state, codec, load={"kind": "offline"}, window=16)
        rows = nodes.frames(frames + FIRST, state, codec, link=dataclasses.asdict(over.link), seed=SEED)[FIRST:]
    measured = spread_of([row["total_ms"] for row in rows])
    [predicted] = [one.total_ms for one in over.predictions if one.candidate == candidate.name]
    return Check(
        candidate=candidate.name, link=over.name, predicted_ms=predicted, measured_ms=measured,
        ratio=predicted.p50 / measured.p50, frames=len(rows),
    )  # fmt: skip

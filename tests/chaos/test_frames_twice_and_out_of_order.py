"""A way that sends frames and answers twice and in another order: one line a frame, each with its own label."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from shuffling_path import ShufflingPath
from three_nodes import FRAMES, three_nodes

from splitcore.journal import read

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


@pytest.mark.parametrize("side", ["near", "far"])
def test_frames_that_come_twice_and_in_another_order_are_answered_once_each(
    side: str, digits_artefact: Path, tmp_path: Path
) -> None:
    way: Any = {side: ShufflingPath}
    with three_nodes(tmp_path, digits_artefact, patience_s=30, **way) as three:
        for run, attack in (("passed", False), ("attacked", True)):
            three.begin(run, attack=attack)
            assert three.wait(run)["state"] == "done"
            ends, _ = three.check(run)
            assert ends == {"label": FRAMES}
            if not attack:
                # each frame has the label of its own image, not of another's
                lines = list(read(tmp_path / "client" / "passes" / run / "frames.jsonl"))
                assert sum(line["predicted"] == line["label"] for line in lines) > 0.8 * FRAMES
        assert getattr(three, side).twice > 10
        assert getattr(three, side).moved > 10

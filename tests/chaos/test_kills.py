"""Every node is killed in turn in one attacked pass and started again where it was."""

from __future__ import annotations

from pathlib import Path

import pytest
from three_nodes import FRAMES, three_nodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


def test_every_node_may_be_killed_in_one_pass_and_no_frame_is_lost_or_answered_twice(
    digits_artefact: Path, tmp_path: Path
) -> None:
    run = "killed"
    with three_nodes(tmp_path, digits_artefact, patience_s=30) as three:
        three.begin(run)
        for done, name in ((6, "edge"), (14, "adversary"), (22, "client"), (30, "edge")):
            three.wait(run, done=done)
            three.processes[name].kill()
            three.start(name)
            if name == "adversary":
                three.behave(run)
            if name == "client":
                three.post(run)
        assert three.wait(run)["state"] == "done"
        ends, counts = three.check(run)
        assert ends == {"label": FRAMES}
        assert counts.queries > 0

"""Three real processes under attack, and a way between them that breaks: every frame has one line, and the books agree."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from faulty_path import FaultyPath
from three_nodes import FRAMES, PATIENCE_S, Three, three_nodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]

SIDES = pytest.mark.parametrize("side", ["near", "far"])


@pytest.fixture(scope="module")
def three(digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Three]:
    with three_nodes(tmp_path_factory.mktemp("path"), digits_artefact, near=FaultyPath, far=FaultyPath) as three:
        yield three


@SIDES
def test_a_way_that_is_cut_again_and_again_costs_time_and_no_frame(three: Three, side: str) -> None:
    run = f"cut-{side}"
    three.begin(run)
    for done in (4, 12, 20):
        three.wait(run, done=done)
        getattr(three, side).cut()
    assert three.wait(run)["state"] == "done"
    ends, _ = three.check(run)
    assert ends == {"label": FRAMES}


@SIDES
def test_a_half_open_connection_is_given_up_and_its_frames_are_asked_again(three: Three, side: str) -> None:
    run = f"half-open-{side}"
    # behind the adversary its own queries are in the black hole too, and it holds their frames no longer than this
    three.begin(run, hold_ms=1000)
    three.wait(run, done=8)
    way: FaultyPath = getattr(three, side)
    way.become("black hole")
    time.sleep(0.5)
    way.become("open")  # for those that come: the one that was there stays dead, and nobody says so
    assert three.wait(run)["state"] == "done"
    ends, _ = three.check(run)
    assert ends == {"label": FRAMES}


@SIDES
@pytest.mark.parametrize("state", ["stalled up", "stalled down"])
def test_a_stalled_peer_is_waited_for_and_every_frame_is_answered(three: Three, side: str, state: Any) -> None:
    run = f"{state.replace(' ', '-')}-{side}"
    three.begin(run)
    three.wait(run, done=8)
    way: FaultyPath = getattr(three, side)
    way.become(state)
    time.sleep(PATIENCE_S / 2)
    way.become("open")
    assert three.wait(run)["state"] == "done"
    ends, _ = three.check(run)
    assert ends == {"label": FRAMES}


def test_a_way_that_never_comes_back_ends_the_pass_with_what_to_do_and_the_run_goes_on_later(three: Three) -> None:
    run = "gone"
    three.begin(run)
    three.wait(run, done=8)
    three.near.become("black hole")
    three.near.cut()
    status = three.wait(run)
    assert status["state"] == "failed"
    assert "start the server, then post the run again" in status["error"]
    three.near.become("open")
    three.near.cut()
    three.post(run)
    assert three.wait(run)["state"] == "done"
    ends, _ = three.check(run)
    assert ends == {"label": FRAMES}

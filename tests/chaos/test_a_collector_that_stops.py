"""A collector that is bound and never reads: the nodes drop spans, count them, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import zmq
from three_nodes import FRAMES, three_nodes

pytestmark = [pytest.mark.long, pytest.mark.timeout(240)]


def test_a_collector_that_stops_reading_costs_spans_and_nothing_else(digits_artefact: Path, tmp_path: Path) -> None:
    context = zmq.Context()
    deaf = context.socket(zmq.PULL)
    deaf.setsockopt(zmq.RCVHWM, 1)
    port = deaf.bind_to_random_port("tcp://127.0.0.1")
    try:
        with three_nodes(tmp_path, digits_artefact, options=("--telemetry", f"tcp://127.0.0.1:{port}")) as three:
            three.begin("deaf")
            assert three.wait("deaf")["state"] == "done"
            ends, _ = three.check("deaf")
            assert ends == {"label": FRAMES}
            processes = three.processes
        assert [process.popen.returncode for process in processes.values()] == [0, 0, 0]
    finally:
        context.destroy(linger=0)

"""A node whose disk is full: what cannot be written is not done, somebody is told why, and room makes it go on."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from three_nodes import FRAMES, three_nodes

from splitcore.journal import read

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(240),
    pytest.mark.skipif(os.geteuid() != 0, reason="a small disk is mounted, which only root may"),
]


@contextlib.contextmanager
def small_disk(folder: Path, size: str = "1m") -> Iterator[Path]:
    """A disk of its own under `folder`, and a file on it that leaves no room while it is there."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder / "ballast"
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 512):
            pass


def test_an_edge_that_cannot_log_computes_nothing_and_says_so(digits_artefact: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "edge") as ballast, three_nodes(tmp_path, digits_artefact) as three:
        fill(ballast)
        three.begin("full", attack=False)
        assert three.wait("full")["state"] == "done"
        ends, counts = three.check("full")
        assert (ends, counts.server_rows, counts.lost) == ({"error": FRAMES}, 0, FRAMES)
        [text] = {line["error"] for line in read(tmp_path / "client" / "passes" / "full" / "frames.jsonl")}
        assert "the server's log cannot be written (No space left on device); nothing was computed" in text
        ballast.unlink()
        three.begin("room")
        assert three.wait("room")["state"] == "done"
        assert three.check("room")[0] == {"label": FRAMES}


def test_an_adversary_that_cannot_keep_its_books_lets_nothing_pass_unbooked(digits_artefact: Path, tmp_path: Path) -> None:
    with small_disk(tmp_path / "adversary") as ballast, three_nodes(tmp_path, digits_artefact) as three:
        three.behave("full", attack=False)
        fill(ballast)
        three.post("full")
        status = three.wait("full")
        assert status["state"] == "failed", status
        assert list(read(tmp_path / "edge" / "server.jsonl")) == []
        ballast.unlink()
        three.post("full")
        assert three.wait("full")["state"] == "done"
        assert three.check("full")[0] == {"label": FRAMES}


def test_a_phone_that_cannot_write_fails_its_pass_in_words_and_goes_on_when_there_is_room(
    digits_artefact: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "client") as ballast, three_nodes(tmp_path, digits_artefact) as three:
        three.behave("full")
        # some seconds long, so that the disk is full before the last frame on a busy machine too
        three.post("full", rate_hz=10)
        three.wait("full", done=6)
        fill(ballast)
        status = three.wait("full")
        assert status["state"] == "failed"
        assert "No space left on device" in status["error"]
        ballast.unlink()
        three.post("full", rate_hz=10)
        assert three.wait("full")["state"] == "done"
        assert three.check("full")[0] == {"label": FRAMES}

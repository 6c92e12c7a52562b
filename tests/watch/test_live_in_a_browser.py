"""The live pages in a real headless Chromium, of nodes under load: what a person would see, at two widths, light and dark.

LATENTBED_SHOTS=FOLDER keeps the screenshots.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tools import tool
from trio import Trio, trio

pytestmark = [pytest.mark.long, pytest.mark.timeout(300)]

NODES = ("edge", "adversary", "client")
WORST_S = 60


@dataclass
class Browser:
    program: str
    folder: Path

    def open(self, address: str, *, width: int, height: int, dark: bool, script: bool = True, shot: Path | None = None) -> str:
        """The page's DOM after some looks at its node; what the page's console said follows it."""
        command = [
            self.program, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-dev-shm-usage",
            f"--user-data-dir={self.folder}", f"--window-size={width},{height}", "--virtual-time-budget=3500",
            f"--blink-settings=preferredColorScheme={int(not dark)}", "--enable-logging=stderr", "--dump-dom",
            *([] if shot is None else [f"--screenshot={shot}"]), f"http://{address}/",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, timeout=WORST_S, check=True)
        said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        assert not said, said
        return done.stdout.partition("<script>")[0]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Browser:
    return Browser(tool("chromium", "chromium"), tmp_path_factory.mktemp("chromium"))


@pytest.fixture(scope="module")
def loaded(browser: Browser, digits_artefact: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trio]:
    """For as long as the tests look: frames at 60 a second, half of them attacked."""
    with trio(digits_artefact, tmp_path_factory.mktemp("loaded")) as nodes:
        threat = {"norm": "linf", "eps": 0.6, "eps_unit": "std", "budget": 150}
        nodes.behave(kind="attack", run="night-shift", attack={"kind": "square"}, threat=threat, share=0.5)
        nodes.begin("night-shift", 100_000, window=48, load={"kind": "server", "rate_hz": 60})
        deadline = time.monotonic() + 60
        while nodes.get("adversary", "/status").json()["sessions"].get("held", 0) < 40:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        time.sleep(float(os.environ.get("LATENTBED_SHOTS_AFTER_S", "4")))
        yield nodes


def shots(tmp_path: Path) -> Path:
    folder = Path(os.environ.get("LATENTBED_SHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("width, height, dark", [(1200, 1560, False), (420, 2600, True)])
def test_the_page_draws_what_its_node_does(
    loaded: Trio, browser: Browser, tmp_path: Path, node: str, width: int, height: int, dark: bool
) -> None:
    shot = shots(tmp_path) / f"{node}-{width}.png"
    dom = browser.open(loaded.nodes[node].control, width=width, height=height, dark=dark, shot=shot)
    view = loaded.get(node, "/live.json").json()
    assert view["title"] in dom
    assert (dom.count("<figure"), dom.count('class="tile"')) == (len(view["charts"]), len(view["tiles"]))
    assert "no answer from the node" not in dom and "NaN" not in dom and "undefined" not in dom
    drawn = re.findall(r'class="(?:line|area) \w+" d="([^"]*)"', dom)
    assert sum(path.count("L") + path.count("H") for path in drawn) > 6, "no line was drawn"
    page = np.asarray(Image.open(shot).convert("RGB"))
    assert page.shape[1] == width
    assert (page[2, 2].mean() < 60) == dark
    inked = (np.abs(page.astype(int) - page[2, 2].astype(int)).sum(axis=2) > 40).mean(axis=1)
    assert (inked > 0).mean() > 0.25, "most of the page is empty"
    # nothing is cut off at the right: the last columns are the page's own
    assert (page[:, -6:] == page[2, 2]).all()


def test_the_page_says_so_when_its_node_is_gone(loaded: Trio, browser: Browser, tmp_path: Path) -> None:
    """The page is kept, its node is not: a file that asks where nobody answers."""
    page = loaded.get("edge", "/live").text.replace('fetch("live.json"', 'fetch("http://127.0.0.1:1/live.json"')
    (tmp_path / "gone.html").write_text(page)
    command = [
        browser.program, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile", "--dump-dom",
        "--virtual-time-budget=2500", f"file://{tmp_path}/gone.html",
    ]  # fmt: skip
    dom = subprocess.run(command, capture_output=True, text=True, timeout=WORST_S, check=True).stdout.partition("<script>")[0]
    assert "no answer from the node" in dom and 'class="stale"' in dom

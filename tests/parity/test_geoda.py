"""GeoDA beside ART's: on NumPy 2 it needs `np.mat` back, and it writes its basis into the working directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from arena import Arena
from compare import beside

from adversary.attacks.geoda import GeoDA
from splitcore.threat import Norm

pytestmark = pytest.mark.parity


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("linf", np.inf)])
def test_it_comes_as_near_as_arts_with_as_many_queries(
    norm: Norm, order: float, arena: Arena, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from art.attacks.evasion import GeoDA as Theirs

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(np, "mat", np.asmatrix, raising=False)
    np.random.seed(0)
    # all frequencies of the 4 x 4 maps, as ours; its own tolerance of 0.1 is coarse for latents this near
    theirs = Theirs(arena.art(), norm=order, sub_dim=4, max_iter=1000, bin_search_tol=0.01, verbose=False)
    result = beside(arena, GeoDA(), theirs.generate(arena.latents[:16].copy(), y=None), norm=norm)
    print(result)
    assert result.low <= 1

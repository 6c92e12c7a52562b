"""The other ceiling: the tail alone, batch after batch, in a process of its own. Reads seconds, writes rows per second.

`python benchmarks/_bare.py GRAPH ROWS` with GRAPH an ONNX file; one thread, as the server's.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitcore.node import keep_memory
from splitcore.onnx_session import open_session


def main(graph: Path, rows: int) -> None:
    keep_memory()
    session = open_session(graph, graph, RuntimeError)  # type: ignore[type-var]
    shape = session.get_inputs()[0].shape[1:]
    latents = np.random.default_rng(0).random((rows, *shape), np.float32)
    session.run(["logits"], {"latent": latents})
    print("ready", flush=True)
    for line in sys.stdin:
        start, done = time.perf_counter(), 0
        until = start + float(line)
        while (now := time.perf_counter()) < until:
            session.run(["logits"], {"latent": latents})
            done += rows
        now = time.perf_counter()
        print(done / (now - start), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""`make fuzz-NAME`: coverage-guided fuzzing (atheris, libFuzzer) of one of support/fuzzing.py's targets.

The corpus grows in runs/fuzz/NAME; an input that breaks something is written to runs/fuzz/found. Whoever mends it keeps the
input in tests/fuzz/found/NAME, where test_seeds.py runs it for good.
"""

from __future__ import annotations

import sys
from pathlib import Path

import atheris

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

with atheris.instrument_imports(include=["splitcore", "adversary.relay", "fuzzing"]):
    from fuzzing import TARGETS


def main(name: str, *flags: str) -> None:
    if name not in TARGETS:
        sys.exit(f"expected one of {', '.join(TARGETS)}, got {name!r}")
    target = TARGETS[name]
    corpus, found = ROOT / "runs" / "fuzz" / name, ROOT / "runs" / "fuzz" / "found"
    for folder in (corpus, found):
        folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        (corpus / f"seed-{number}").write_bytes(seed)
    limits = [f"-max_len={target.max_bytes}", "-timeout=10", "-rss_limit_mb=1024", f"-artifact_prefix={found}/{name}-"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *flags], target.check)
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])

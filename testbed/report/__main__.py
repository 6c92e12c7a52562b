"""`python -m testbed.report RUN_DIR [--artefact DIR]` writes a run's report again."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from splitcore.errors import LatentbedError
from testbed.report.build import build


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m testbed.report", description="Writes the report of a run directory.")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--artefact", type=Path, help="the artefact's folder, for what the unsplit model says")
    arguments = parser.parse_args()
    try:
        report = build(arguments.run_dir, arguments.artefact)
    except LatentbedError as error:
        print(error, file=sys.stderr)
        return 2
    print(arguments.run_dir / "report.html")
    return 0 if report.ledger.agrees else 1


if __name__ == "__main__":
    sys.exit(main())

"""docs/report.schema.json from the models: `python -m testbed.report.schema [--check]`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from testbed.report.model import Report

PATH = Path(__file__).parents[2] / "docs" / "report.schema.json"


def schema() -> str:
    description = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Report.model_json_schema()}
    return json.dumps(description, indent=1, ensure_ascii=False) + "\n"


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--check"]):
        print(f"expected no argument or --check, got {arguments}", file=sys.stderr)
        return 2
    if not arguments:
        PATH.write_text(schema(), encoding="utf-8")
        return 0
    if PATH.exists() and PATH.read_text(encoding="utf-8") == schema():
        return 0
    print(f"{PATH} is not the schema of testbed/report/model.py: run `python -m testbed.report.schema`", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

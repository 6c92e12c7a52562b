"""Notes on which commit, and where, the GPU tests last passed: `python -m testbed.gpu_path COMMIT DEVICE`.

`make test-gpu` calls it after the tests; the report prints what it wrote, or "never".
"""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path

import edge_server

NOTE = Path(edge_server.__file__).parent / "gpu_path.json"


def main() -> int:
    if len(sys.argv) != 3:
        print("usage: python -m testbed.gpu_path COMMIT DEVICE", file=sys.stderr)
        return 2
    commit, device = sys.argv[1:]
    note = {"commit": commit, "date": f"{datetime.now(UTC):%Y-%m-%d}", "device": device}
    NOTE.write_text(json.dumps(note, indent=1) + "\n")
    print(f"{NOTE.name}: {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

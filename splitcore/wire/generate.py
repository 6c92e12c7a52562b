"""Writes open_inference_pb2.py from proto/open_inference.proto: `python -m splitcore.wire.generate [--check]`.

grpcio-tools is pinned in the dev extra: stubs of a newer one refuse the protobuf that tritonclient and mlserver need.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
NAMES = ("open_inference_pb2.py", "open_inference_pb2.pyi")


def generate(into: Path) -> None:
    """The stub and its type stub. Raises RuntimeError with protoc's exit status."""
    from grpc_tools import protoc  # type: ignore[import-untyped]

    proto = ROOT / "proto"
    plugin = Path(sys.executable).parent / "protoc-gen-mypy"
    status = protoc.main(
        ["protoc", f"-I{proto}", f"--plugin=protoc-gen-mypy={plugin}", f"--python_out={into}", f"--mypy_out={into}",
         str(proto / "open_inference.proto")]
    )  # fmt: skip
    if status:
        raise RuntimeError(f"protoc ended with {status} on {proto / 'open_inference.proto'}")


def main() -> int:
    if "--check" not in sys.argv[1:]:
        generate(HERE)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        stale = [name for name in NAMES if (HERE / name).read_bytes() != (Path(folder) / name).read_bytes()]
    for name in stale:
        print(f"splitcore/wire/{name} differs from proto/open_inference.proto: run `make proto` and commit the result")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())

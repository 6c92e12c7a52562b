"""A network in ONNX Runtime, opened in one way by all who run one."""

from __future__ import annotations

from pathlib import Path

import onnxruntime as ort

from splitcore.errors import LatentbedError

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
_ERRORS_ONLY = 3


def open_session(
    model: Path | bytes, what: object, wrong: type[LatentbedError], *,
    threads: int = 1, spinning: bool = False, provider: str = CPU, optimised: bool = True,
) -> ort.InferenceSession:  # fmt: skip
    """A session for the file or the serialised network. Raises `wrong`, which names `what`.

    Threads are set, and ONNX Runtime's workers do not spin while idle unless they are to be `spinning`: codec and network
    thread want the same cores. Not `optimised`: every tensor of the graph is still there and may be asked for.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    options.log_severity_level = _ERRORS_ONLY
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        return ort.InferenceSession(model, options, providers=[provider])
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise wrong(f"{what} is no network that this ONNX Runtime {ort.__version__} can run: {error}") from error

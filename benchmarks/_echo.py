"""The ceiling: grpc.aio and uvloop that parse every request, serialise an answer like the edge's, and do no more.

`python benchmarks/_echo.py CLASSES` prints its address."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import grpc
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from splitcore.node import new_event_loop
from splitcore.wire import oip
from splitcore.wire import open_inference_pb2 as pb
from splitcore.wire.channel import server_options


async def serve(classes: int) -> None:
    """Until it is killed."""

    def answer(message: bytes) -> pb.ModelInferResponse:
        request = pb.ModelInferRequest.FromString(message)
        rows = request.inputs[0].shape[0]
        response = pb.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name=oip.SCORES, datatype="FP32", shape=(rows, classes))
        response.outputs.add(name=oip.LABEL, datatype="INT64", shape=(rows,))
        response.raw_output_contents.append(np.zeros((rows, classes), "<f4").tobytes())
        response.raw_output_contents.append(np.zeros(rows, "<i8").tobytes())
        return response

    async def unary(message: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return answer(message).SerializeToString()

    async def stream(requests: object, context: grpc.aio.ServicerContext) -> None:
        while (message := await context.read()) is not grpc.aio.EOF:
            reply = pb.ModelStreamInferResponse(infer_response=answer(message))
            await context.write(reply.SerializeToString())

    server = grpc.aio.server(options=server_options())
    methods = {
        oip.INFER: grpc.unary_unary_rpc_method_handler(unary),
        oip.STREAM: grpc.stream_stream_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(oip.SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(serve(int(sys.argv[1])))

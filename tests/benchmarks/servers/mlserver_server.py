"""The forward graph behind MLServer: gRPC ModelInfer of "glow" takes an image as a BYTES tensor in raw contents.

MLServer would turn a UINT8 tensor into a list of numbers, which takes longer.
"""

from __future__ import annotations

import asyncio

from arguments import arguments
from graph import Graph
from mlserver import MLModel, MLServer, ModelSettings, Settings
from mlserver.settings import ModelParameters
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Glow(MLModel):  # type: ignore[misc]
    async def load(self) -> bool:
        parameters = self.settings.parameters
        self.graph = Graph(parameters.uri, parameters.extra["threads"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = payload.inputs[0].data.root
        scores = await asyncio.to_thread(self.graph.score, images)
        output = ResponseOutput(name="log_likelihood", shape=[len(scores), 1], datatype="FP32", data=scores)
        return InferenceResponse(id=payload.id, model_name=self.name, outputs=[output])


async def _serve() -> None:
    args = arguments("processes that run the graph; 0 runs it in threads of the server")
    settings = Settings(
        debug=False,
        host="127.0.0.1",
        grpc_port=args.port,
        http_port=args.port + 1,
        metrics_endpoint=None,
        parallel_workers=args.workers,
        gzip_enabled=False,
    )
    model = ModelSettings(
        name="glow",
        implementation="mlserver_server.Glow",
        max_batch_size=args.max_batch_size,
        max_batch_time=args.delay_ms / 1000,
        parameters=ModelParameters(uri=str(args.graph), extra={"threads": args.threads}),
    )
    await MLServer(settings).start([model])


if __name__ == "__main__":
    asyncio.run(_serve())

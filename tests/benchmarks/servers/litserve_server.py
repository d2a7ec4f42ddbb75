"""The forward graph behind LitServe: POST /predict takes the bytes of an image and answers its log-likelihood."""

import argparse
from typing import Annotated, Any

import litserve
from arguments import arguments
from fastapi import Body
from graph import Graph


class Glow(litserve.LitAPI):  # type: ignore[misc]
    def __init__(self, args: argparse.Namespace) -> None:
        super().__init__(max_batch_size=args.max_batch_size, batch_timeout=args.delay_ms / 1000)
        self.args = args

    def setup(self, device: str) -> None:
        self.graph = Graph(self.args.graph, self.args.threads)

    def decode_request(self, request: Annotated[bytes, Body(media_type="application/octet-stream")]) -> Any:
        return request

    def batch(self, inputs: list[bytes]) -> list[bytes]:
        return inputs

    def predict(self, x: list[bytes]) -> list[float]:
        return self.graph.score(x)

    def unbatch(self, output: list[float]) -> list[float]:
        return output

    def encode_response(self, output: float) -> Any:
        return output


if __name__ == "__main__":
    args = arguments("processes that run the graph")
    server = litserve.LitServer(
        Glow(args),
        accelerator="cpu",
        workers_per_device=args.workers,
        fast_queue=True,
        disable_openapi_url=True,
    )
    server.run(
        host="127.0.0.1", port=args.port, num_api_servers=1, log_level="warning", generate_client_file=False
    )

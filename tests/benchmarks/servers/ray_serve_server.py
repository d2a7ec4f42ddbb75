"""The forward graph behind Ray Serve: POST / takes the bytes of an image and answers its log-likelihood.

Its documentation advises to set $RAY_SERVE_THROUGHPUT_OPTIMIZED and $RAY_SERVE_ENABLE_HA_PROXY.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import ray
from arguments import arguments
from graph import Graph
from ray import serve
from ray.serve.schema import LoggingConfig
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(max_ongoing_requests=1024)
class Glow:
    def __init__(self, graph: Path, threads: int, max_batch_size: int, delay_seconds: float) -> None:
        self.graph = Graph(graph, threads)
        self.score.set_max_batch_size(max_batch_size)
        self.score.set_batch_wait_timeout_s(delay_seconds)

    @serve.batch
    async def score(self, images: list[bytes]) -> list[float]:
        return await asyncio.to_thread(self.graph.score, images)

    async def __call__(self, request: Request) -> Response:
        return Response(repr(await self.score(await request.body())))


if __name__ == "__main__":
    args = arguments("replicas")
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    # More cores than the machine has, so that Ray starts every part; Ray does not enforce the shares.
    ray.init(num_cpus=16, include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": args.port})
    glow = Glow.options(num_replicas=args.workers)
    serve.run(
        glow.bind(args.graph, args.threads, args.max_batch_size, args.delay_ms / 1000),
        logging_config=LoggingConfig(log_level="WARNING", enable_access_log=False),
    )
    stopped.wait()
    serve.shutdown()
    ray.shutdown()

"""gRPC for Python alone: answers every call with the same few bytes.

python tests/benchmarks/servers/echo_server.py --port 9000
python tests/benchmarks/servers/echo_server.py --port 9000 --wait-ms 17    # sleeps as long as a graph would run
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc

# As many bytes as the answer of Score for one image.
_ANSWER = bytes(64)


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def __init__(self, wait_seconds: float) -> None:
        self._wait_seconds = wait_seconds

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._answer)

    async def _answer(self, request: bytes, context: Any) -> bytes:
        if self._wait_seconds:
            await asyncio.sleep(self._wait_seconds)
        return _ANSWER


async def _serve(port: int, wait_seconds: float) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(wait_seconds),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--wait-ms", type=float, default=0.0)
    args = parser.parse_args()
    asyncio.run(_serve(args.port, args.wait_ms / 1000))

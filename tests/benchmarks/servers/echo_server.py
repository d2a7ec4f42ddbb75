"""gRPC for Python by itself: answers every call with a few bytes, whatever came.

python tests/benchmarks/servers/echo_server.py --port 9000
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc

# As long as the answer of Score for one image.
_ANSWER = bytes(64)


class _Echo(grpc.GenericRpcHandler):  # type: ignore[misc]
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(_answer)


async def _answer(request: bytes, context: Any) -> bytes:
    return _ANSWER


async def _serve(port: int) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((_Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(_serve(parser.parse_args().port))

"""Many calls at once, from a process of its own: `matrix_client.py TARGET KIND ENDING CALLS`.

It writes "open" when every call is under way, and at last a JSON object of how many calls ended with which status.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc

from glowserve.oip import grpc_service_pb2 as oip
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2

_ROWS = 16
_PIXELS = bytes(range(64)) * _ROWS
_NOT_FINITE = bytes.fromhex("ffff7f7f") * 64  # the largest float32: no model decodes it
_GLOW, _INFERENCE = "/glowserve.v1.GlowService/", "/inference.GRPCInferenceService/"
# Longer than any case takes.
_FOR_GOOD = 600.0


def tensor(kind: str, *shape: int, data: bytes) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=f"DATA_TYPE_{kind}", shape=shape, data=data)  # type: ignore[arg-type]


SCORE = pb.ScoreRequest(images=pb.Images(tensor=tensor("UINT8", _ROWS, 8, 8, 1, data=_PIXELS)))
ENCODE = pb.EncodeRequest(images=SCORE.images)
DECODE = pb.DecodeRequest(latents=tensor("FLOAT32", _ROWS, 64, data=bytes(256 * _ROWS)))
INFER = oip.ModelInferRequest(
    model_name="digits",
    inputs=[{"name": "image", "datatype": "UINT8", "shape": [_ROWS, 8, 8, 1]}],  # type: ignore[list-item]
    raw_input_contents=[_PIXELS],
)


async def unary(channel: grpc.aio.Channel, ending: str, number: int) -> Any:
    """Score, Encode, Decode and ModelInfer in turns."""
    good = [("Score", SCORE), ("Encode", ENCODE), ("Decode", DECODE)]
    bad = [
        ("Decode", pb.DecodeRequest(latents=tensor("FLOAT32", 1, 64, data=_NOT_FINITE))),
        ("Score", pb.ScoreRequest()),
        ("Encode", pb.EncodeRequest(model=pb.ModelSpec(name="nothing"), images=SCORE.images)),
    ]
    name, request = (bad if ending == "error" else good)[number % 3]
    return channel.unary_unary(_GLOW + name)(request.SerializeToString(), timeout=_seconds(ending))


async def streaming(channel: grpc.aio.Channel, ending: str, number: int) -> Any:
    """Sample: 64 images, or as many as there may be."""
    n = 64 if ending in ("finishes", "stopped") else 100_000
    temperature = 3e38 if ending == "error" else 0.5
    request = pb.SampleRequest(n=n, temperature=temperature, seed=number, format=pb.IMAGE_FORMAT_RAW)
    return channel.unary_stream(_GLOW + "Sample")(request.SerializeToString(), timeout=_seconds(ending))


async def bidirectional(channel: grpc.aio.Channel, ending: str, number: int) -> Any:
    """ModelStreamInfer and ScoreStream in turns: three requests; then the end, or bytes that are none, or nothing."""
    path, request = ((_INFERENCE + "ModelStreamInfer", INFER), (_GLOW + "ScoreStream", SCORE))[number % 2]

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request.SerializeToString()
        if ending == "error":
            yield b"\xff"
        elif ending != "finishes":
            await asyncio.sleep(_FOR_GOOD)

    return channel.stream_stream(path)(requests(), timeout=_seconds(ending))


KINDS = {"unary": unary, "streaming": streaming, "bidirectional": bidirectional}


def _seconds(ending: str) -> float:
    return 1.0 if ending == "deadline" else _FOR_GOOD


async def status(call: Any, stream: bool) -> str:
    """How a call ends."""
    try:
        if stream:
            async for _ in call:
                pass
        else:
            await call
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def run(target: str, kind: str, ending: str, calls: int) -> Counter[str]:
    """Makes the calls, and cancels them at different times where that is asked for."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    rng = random.Random(0)
    async with grpc.aio.insecure_channel(target, options) as channel:
        made = [await KINDS[kind](channel, ending, number) for number in range(calls)]
        answers = [asyncio.create_task(status(call, kind != "unary")) for call in made]
        print("open", flush=True)
        if ending == "cancelled":
            for call in made:
                asyncio.get_running_loop().call_later(rng.uniform(0.0, 1.0), call.cancel)
        return Counter(await asyncio.gather(*answers))


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(*sys.argv[1:4], int(sys.argv[4])))))  # type: ignore[misc]

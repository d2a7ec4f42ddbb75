"""Makes many calls at once: `python client.py TARGET KIND ENDING CALLS`.

It writes "open" once every call is open and has sent its requests, and at the end a JSON object: the number of calls by
status. gRPC's client would report INTERNAL instead of the server's status if a stream ended while it still sent.
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
_NOT_FINITE = bytes.fromhex("ffff7f7f") * 64  # 64 times the largest float32, which no model decodes
_GLOW, _INFERENCE = "/glowserve.v1.GlowService/", "/inference.GRPCInferenceService/"
# Longer than any case takes.
_LONG_SECONDS = 600.0


def tensor(kind: str, *shape: int, data: bytes) -> tensor_pb2.Tensor:
    return tensor_pb2.Tensor(dtype=f"DATA_TYPE_{kind}", shape=shape, data=data)


SCORE = pb.ScoreRequest(images=pb.Images(tensor=tensor("UINT8", _ROWS, 8, 8, 1, data=_PIXELS)))
ENCODE = pb.EncodeRequest(images=SCORE.images)
DECODE = pb.DecodeRequest(latents=tensor("FLOAT32", _ROWS, 64, data=bytes(256 * _ROWS)))
INFER = oip.ModelInferRequest(
    model_name="digits",
    inputs=[{"name": "image", "datatype": "UINT8", "shape": [_ROWS, 8, 8, 1]}],
    raw_input_contents=[_PIXELS],
)


async def unary(channel: grpc.aio.Channel, ending: str, number: int, sent: asyncio.Event) -> Any:
    """Score, Encode or Decode, in turns."""
    valid = [("Score", SCORE), ("Encode", ENCODE), ("Decode", DECODE)]
    invalid = [
        ("Decode", pb.DecodeRequest(latents=tensor("FLOAT32", 1, 64, data=_NOT_FINITE))),
        ("Score", pb.ScoreRequest()),
        ("Encode", pb.EncodeRequest(model=pb.ModelSpec(name="nothing"), images=SCORE.images)),
    ]
    name, request = (invalid if ending == "error" else valid)[number % 3]
    sent.set()
    return channel.unary_unary(_GLOW + name)(request.SerializeToString(), timeout=_timeout(ending))


async def streaming(channel: grpc.aio.Channel, ending: str, number: int, sent: asyncio.Event) -> Any:
    """Sample: of 64 images if the call is to finish or to fail, else of the most that are allowed."""
    n = 64 if ending in ("finishes", "stopped", "error") else 100_000
    temperature = 3e38 if ending == "error" else 0.5
    sent.set()
    request = pb.SampleRequest(n=n, temperature=temperature, seed=number, format=pb.IMAGE_FORMAT_RAW)
    return channel.unary_stream(_GLOW + "Sample")(request.SerializeToString(), timeout=_timeout(ending))


async def bidirectional(channel: grpc.aio.Channel, ending: str, number: int, sent: asyncio.Event) -> Any:
    """ModelStreamInfer or ScoreStream, in turns, with three requests.

    After these the client ends the stream if the call is to finish, sends a malformed message if it is to fail, and
    else sends nothing.
    """
    path, request = ((_INFERENCE + "ModelStreamInfer", INFER), (_GLOW + "ScoreStream", SCORE))[number % 2]

    async def requests() -> AsyncIterator[bytes]:
        for _ in range(3):
            yield request.SerializeToString()
        sent.set()  # gRPC takes the next request once it has sent the one before
        if ending == "error":
            yield b"\xff"
        elif ending != "finishes":
            await asyncio.sleep(_LONG_SECONDS)

    return channel.stream_stream(path)(requests(), timeout=_timeout(ending))


KINDS = {"unary": unary, "streaming": streaming, "bidirectional": bidirectional}


def _timeout(ending: str) -> float:
    return 1.0 if ending == "deadline" else _LONG_SECONDS


async def status(call: Any, *, streams: bool) -> str:
    """Waits for the end of a call, and returns its status."""
    try:
        if streams:
            async for _ in call:
                pass
        else:
            await call
    except asyncio.CancelledError:
        return "CANCELLED"
    except grpc.aio.AioRpcError as error:
        return str(error.code().name)
    return "OK"


async def sent_or_ended(sent: asyncio.Event, end: asyncio.Task[str]) -> None:
    """Waits until a call has sent its requests, or has ended."""
    sending = asyncio.create_task(sent.wait())
    await asyncio.wait({sending, end}, return_when=asyncio.FIRST_COMPLETED)
    sending.cancel()


async def run(target: str, kind: str, ending: str, calls: int) -> Counter[str]:
    """Makes the calls; if they are to be cancelled, cancels them at random times within a second."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    rng = random.Random(0)
    async with grpc.aio.insecure_channel(target, options) as channel:
        sent = [asyncio.Event() for _ in range(calls)]
        made = [await KINDS[kind](channel, ending, number, sent[number]) for number in range(calls)]
        ends = [asyncio.create_task(status(call, streams=kind != "unary")) for call in made]
        await asyncio.gather(*map(sent_or_ended, sent, ends))
        print("open", flush=True)
        if ending == "cancelled":
            for call in made:
                asyncio.get_running_loop().call_later(rng.uniform(0.0, 1.0), call.cancel)
        return Counter(await asyncio.gather(*ends))


def main(target: str, kind: str, ending: str, calls: str) -> None:
    print(json.dumps(asyncio.run(run(target, kind, ending, int(calls)))))


if __name__ == "__main__":
    main(*sys.argv[1:])

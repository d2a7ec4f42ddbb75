"""Streams whose caller does not read the responses, opened by one process."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc

from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.wire import SMALL_WINDOW
from tests.soak.callers import OWN_CONNECTION, infer_request
from tests.soak.known_answers import TEMPERATURE, KnownAnswers


def open_streams(target: str, known: KnownAnswers, n: int, samples: int, opened: Any) -> None:
    """Opens n streams, each on its own connection, reads one response of every other stream, and then none.

    Half of the streams are Sample, half ModelStreamInfer, which sends requests for as long as the service takes them.
    Runs until the process is killed.

    Args:
        target: HOST:PORT.
        known: the model's answers; its first image is sent.
        n: the number of streams.
        samples: how many each Sample requests.
        opened: a queue that gets True once all streams are open.
    """
    asyncio.run(_open_streams(target, known, n, samples, opened))


async def _open_streams(target: str, known: KnownAnswers, n: int, samples: int, opened: Any) -> None:
    request = infer_request(known.images[:1])

    async def write_forever(call: Any) -> None:
        while True:
            await call.write(request)

    streams, writers = [], []
    for i in range(n):
        channel = grpc.aio.insecure_channel(target, [*OWN_CONNECTION, *SMALL_WINDOW])
        if i % 2:
            call = GlowServiceStub(channel).Sample(
                pb.SampleRequest(n=samples, seed=i, temperature=TEMPERATURE)
            )
        else:
            call = GRPCInferenceServiceStub(channel).ModelStreamInfer()
            writers.append(asyncio.create_task(write_forever(call)))
        if i % 4 < 2:
            await call.read()
        streams.append((channel, call))
    opened.put(True)
    await asyncio.Event().wait()

"""Whatever picture files a caller sends, the service scores or refuses them, soon and without much memory."""

from __future__ import annotations

import re
import time
import warnings
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from glowserve import images
from glowserve.messages import images_message
from glowserve.v1 import glow_service_pb2 as pb
from tests.soak.fuzz.calls import PATIENCE_SECONDS, send
from tests.soak.fuzz.cases import SEED, cases_of, run_cases
from tests.soak.fuzz.conftest import MORE_MEMORY_BYTES
from tests.soak.fuzz.findings import Findings
from tests.soak.fuzz.methods import GLOW, Method
from tests.soak.fuzz.pictures import bombs, originals, picture
from tests.soak.service import Service

SCORED_OR_REFUSED = {"OK", "INVALID_ARGUMENT"}
SHAPE = (8, 8, 3)
MAX_PIXELS = 32_000_000
SLOWEST_SECONDS = 10.0


def score_request(*files: bytes) -> bytes:
    return pb.ScoreRequest(images=images_message(list(files))).SerializeToString()


async def test_damaged_pictures_are_scored_or_refused(target: Service, score: Method, unharmed: None) -> None:
    findings = Findings("pictures")

    async def run_case(number: int) -> None:
        files = [picture(SEED, number)]
        if number % 4 == 0:
            files.append(originals()[number % 20])
        request = score_request(*files)
        status, message, responses = await send(channel, score, score.path, [request])
        findings.add(number, f"{len(files)} in a call", status, SCORED_OR_REFUSED, message, request)
        for data in responses:
            assert len(pb.ScoreResponse.FromString(data).scores) == len(files)

    async with grpc.aio.insecure_channel(target.target) as channel:
        await run_cases(run_case, cases_of("pictures"))
    findings.finish()


async def test_decompression_bombs_are_refused_or_take_little_memory(
    target: Service, score: Method, unharmed: None
) -> None:
    findings = Findings("bombs")

    async def run_case(number: int) -> None:
        request = score_request(bombs()[number % len(bombs())])
        status, message, _ = await send(channel, score, score.path, [request])
        findings.add(number, "Score", status, SCORED_OR_REFUSED, message, request)

    async with grpc.aio.insecure_channel(target.target) as channel:
        await run_cases(run_case, 2 * len(bombs()))
    findings.finish()


def test_a_compressed_request_is_refused_before_it_is_decompressed(target: Service, unharmed: None) -> None:
    """gRPC decompresses a request before it checks its size: 1 MB would become 1 GB."""
    with grpc.insecure_channel(target.target, [("grpc.max_send_message_length", -1)]) as channel:
        call: Any = channel.unary_unary(f"/{GLOW}/Score")
        with pytest.raises(grpc.RpcError) as caught:
            call(
                score_request(bytes(300 * 2**20)),
                timeout=PATIENCE_SECONDS,
                compression=grpc.Compression.Gzip,
            )
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert peak_memory(target) - target.snapshot().rss < 4 * MORE_MEMORY_BYTES


def peak_memory(service: Service) -> int:
    """The most memory that the service has held, in bytes."""
    status = Path(f"/proc/{service.process.pid}/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    return int(peak[1]) * 1024


def test_the_decoder_raises_only_invalid_image_error_and_is_never_slow() -> None:
    findings, slowest = Findings("decoder"), 0.0
    for number in range(cases_of("decoder")):
        data, began = picture(SEED + 1, number), time.monotonic()
        status, message = decode(data)
        slowest = max(slowest, time.monotonic() - began)
        findings.add(number, "prepare", status, {"OK", "InvalidImageError"}, message, data)
    print(f"the slowest picture took {slowest:.2f} s")
    findings.finish()
    assert slowest < SLOWEST_SECONDS


def decode(data: bytes) -> tuple[str, str]:
    """The name of the error that decoding raises, or "OK", and its message."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the decoder may warn of what is unusual in a picture
        try:
            with images.open_encoded(data, formats=images.ENCODED_FORMATS) as opened:
                if (
                    opened.width * opened.height > MAX_PIXELS
                ):  # the service refuses it before it decodes the pixels
                    return "InvalidImageError", "too many pixels"
                prepared = images.prepare(opened, *SHAPE, images.Preparation())
        except Exception as error:
            return type(error).__name__, str(error)
    assert prepared.shape == SHAPE
    assert prepared.dtype == np.uint8
    return "OK", ""

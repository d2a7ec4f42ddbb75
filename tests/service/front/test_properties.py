"""Random requests and random bytes: each is answered or refused as the contract says, and the server goes on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.metrics import in_flight

# The same examples in every run.
many = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}


@pytest.fixture(scope="module", autouse=True)
def the_server_still_serves(server: Server, channel: grpc.Channel, stub: GlowServiceStub) -> Iterator[None]:
    """After all requests health says SERVING, a call is answered, and none is in flight."""
    yield
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert len(list(stub.Sample(pb.SampleRequest(n=3, temperature=0)))) == 1
    assert in_flight(server) == 0


def outcome(call: Any, request: Any, *, streams: bool = False) -> Any:
    """The answer; None if the call was refused as the contract says."""
    try:
        answer = call(request, timeout=60)
        return list(answer) if streams else answer
    except grpc.RpcError as error:
        if error.code() in REFUSALS and error.details():
            return None
        raise


def tensors(dtype: int, row: list[int]) -> st.SearchStrategy[tensor_pb2.Tensor]:
    """Well-formed tensors, nearly well-formed ones, and arbitrary ones."""
    size = 4 if dtype == tensor_pb2.DATA_TYPE_FLOAT32 else 1
    length = int(np.prod(row)) * size

    def well_formed(n: int) -> st.SearchStrategy[tensor_pb2.Tensor]:
        data = st.binary(min_size=n * length, max_size=n * length)
        return data.map(lambda data: tensor_pb2.Tensor(dtype=dtype, shape=[n, *row], data=data))  # type: ignore[arg-type]

    dimension = st.sampled_from([0, 1, 2, 7, 8, 64, 257, 2**31, 2**63 - 1, -1, -(2**63)])
    return st.one_of(
        st.integers(1, 3).flatmap(well_formed),
        st.builds(
            tensor_pb2.Tensor,
            dtype=st.sampled_from([dtype, dtype, 0, 1, 2, 3, -1, 2**31 - 1]),
            shape=st.one_of(
                st.just([1, *row]),
                st.lists(dimension, max_size=6),
                st.lists(st.integers(-(2**63), 2**63 - 1), max_size=6),
            ),
            data=st.one_of(st.just(bytes(length)), st.binary(max_size=300)),
        ),
    )


def files() -> st.SearchStrategy[bytes]:
    """Pictures, pictures with some bytes changed, inserted or cut off, and arbitrary bytes."""
    originals = []
    for form in ("PNG", "JPEG", "WEBP", "GIF"):
        for mode, size in (("RGB", (9, 7)), ("L", (8, 8)), ("RGBA", (3, 20))):
            if form != "JPEG" or mode != "RGBA":
                picture = Image.effect_noise(size, 50).convert(mode)
                buffer = io.BytesIO()
                picture.save(buffer, form)
                originals.append(buffer.getvalue())

    @st.composite
    def damaged(draw: st.DrawFn) -> bytes:
        data = bytearray(draw(st.sampled_from(originals)))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(data)))
            how = draw(st.sampled_from(["change", "insert", "cut"]))
            if how == "change":
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            elif how == "insert":
                data[at:at] = draw(st.binary(max_size=8))
            else:
                del data[at:]
        return bytes(data)

    magic = st.sampled_from([b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"RIFF\x20\0\0\0WEBPVP8 "])
    return st.one_of(damaged(), st.tuples(magic, st.binary(max_size=200)).map(b"".join))


def specs() -> st.SearchStrategy[pb.ModelSpec | None]:
    good = [None, pb.ModelSpec(), pb.ModelSpec(name="digits"), pb.ModelSpec(version=1)]
    any_spec = st.builds(pb.ModelSpec, name=st.text(max_size=300), version=st.integers(0, 2**64 - 1))
    return st.sampled_from([*3 * good, ...]).flatmap(lambda spec: any_spec if spec is ... else st.just(spec))


def images() -> st.SearchStrategy[pb.Images | None]:
    encoded = st.lists(files(), max_size=4).map(lambda data: pb.Images(encoded=pb.EncodedImages(data=data)))
    tensor = tensors(tensor_pb2.DATA_TYPE_UINT8, [8, 8, 1]).map(lambda tensor: pb.Images(tensor=tensor))
    return st.one_of(st.none(), encoded, tensor)


SEEDS = st.one_of(st.none(), st.integers(0, 2**64 - 1))
FORMATS = st.sampled_from([0, 0, 1, 1, 2, 2, 3, -1, 2**31 - 1])


def size_of(images: pb.Images) -> int:
    return len(images.encoded.data) if images.HasField("encoded") else images.tensor.shape[0]


METHODS = [
    *("Score", "Explain", "Encode", "Decode", "Interpolate", "Manipulate", "Sample"),
    *("GetModel", "ListModels"),
]


@many
@given(request=st.builds(pb.ScoreRequest, model=specs(), images=images(), seed=SEEDS))
def test_score_answers_every_image_or_refuses(stub: GlowServiceStub, request: pb.ScoreRequest) -> None:
    response = outcome(stub.Score, request)
    if response is not None:
        assert len(response.scores) == size_of(request.images)
        assert response.seed == request.seed
        for score in response.scores:
            assert score.finite
            assert np.isfinite(score.log_likelihood)
            assert 0 <= score.percentile <= 100


@many
@given(request=st.builds(pb.ExplainRequest, model=specs(), images=images()))
def test_explain_answers_every_image_or_refuses(stub: GlowServiceStub, request: pb.ExplainRequest) -> None:
    response = outcome(stub.Explain, request)
    if response is not None:
        n = size_of(request.images)
        assert list(response.deviations.shape) == [n, 8, 8]
        assert np.isfinite(np.frombuffer(response.deviations.data, "<f4")).all()
        assert [each.finite for each in response.explanations] == [True] * n


@many
@given(request=st.builds(pb.EncodeRequest, model=specs(), images=images()))
def test_encode_answers_every_image_or_refuses(stub: GlowServiceStub, request: pb.EncodeRequest) -> None:
    response = outcome(stub.Encode, request)
    if response is not None:
        n = size_of(request.images)
        assert list(response.latents.shape) == [n, 64]
        assert np.isfinite(np.frombuffer(response.latents.data, "<f4")).all()
        assert len(response.mismatched_values) == n


@many
@given(
    request=st.builds(
        pb.DecodeRequest,
        model=specs(),
        latents=tensors(tensor_pb2.DATA_TYPE_FLOAT32, [64]),
        format=FORMATS,
    )
)
def test_decode_answers_every_row_or_refuses(stub: GlowServiceStub, request: pb.DecodeRequest) -> None:
    response = outcome(stub.Decode, request)
    if response is not None:
        assert size_of(response.images) == request.latents.shape[0]


@many
@given(scale=st.floats(0, 6), seed=st.integers(0, 2**32 - 1), n=st.integers(1, 4))
def test_decode_answers_or_refuses_latents_of_any_moderate_length(
    stub: GlowServiceStub, scale: float, seed: int, n: int
) -> None:
    rows = (np.random.default_rng(seed).normal(size=(n, 64)) * scale).astype("<f4")
    tensor = tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=rows.shape, data=rows.tobytes())
    response = outcome(stub.Decode, pb.DecodeRequest(latents=tensor, format=pb.IMAGE_FORMAT_RAW))
    assert response is None or list(response.images.tensor.shape) == [n, 8, 8, 1]


@many
@given(
    request=st.builds(
        pb.SampleRequest,
        model=specs(),
        n=st.one_of(st.integers(0, 70), st.integers(1, 70), st.integers(100_001, 2**32 - 1)),
        temperature=st.one_of(st.none(), st.floats(0, 2, width=32), st.floats(width=32)),
        seed=SEEDS,
        format=FORMATS,
    )
)
def test_sample_draws_the_requested_number_or_refuses(
    stub: GlowServiceStub, request: pb.SampleRequest
) -> None:
    responses = outcome(stub.Sample, request, streams=True)
    if responses is not None:
        assert sum(size_of(response.images) for response in responses) == request.n
        if request.HasField("seed"):
            assert {response.seed for response in responses} == {request.seed}


@many
@given(request=st.builds(pb.GetModelRequest, model=specs()))
def test_get_model_describes_the_model_or_refuses(stub: GlowServiceStub, request: pb.GetModelRequest) -> None:
    response = outcome(stub.GetModel, request)
    assert response is None or response.manifest.model == "digits"


@many
@given(
    method=st.sampled_from(METHODS),
    data=st.binary(max_size=200),
)
def test_random_bytes_are_answered_or_refused(channel: grpc.Channel, method: str, data: bytes) -> None:
    streams = method == "Sample"
    kind = channel.unary_stream if streams else channel.unary_unary
    outcome(kind(f"/glowserve.v1.GlowService/{method}"), data, streams=streams)


@many
@given(data=st.data())
def test_a_good_message_with_some_bytes_changed_is_answered_or_refused(
    channel: grpc.Channel, data: st.DataObject
) -> None:
    """More of these are parsed than of random bytes. The method is any, not always the message's own."""
    pixels = tensor_pb2.Tensor(dtype="DATA_TYPE_UINT8", shape=[2, 8, 8, 1], data=bytes(128))
    rows = tensor_pb2.Tensor(dtype="DATA_TYPE_FLOAT32", shape=[1, 64], data=bytes(256))
    good = [
        pb.ScoreRequest(model=pb.ModelSpec(name="digits"), images=pb.Images(tensor=pixels), seed=3),
        pb.SampleRequest(n=5, temperature=0.5, seed=1, format=pb.IMAGE_FORMAT_RAW),
        pb.DecodeRequest(latents=rows),
    ]
    message = bytearray(data.draw(st.sampled_from(good)).SerializeToString())
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    method = data.draw(st.sampled_from(METHODS))
    streams = method == "Sample"
    kind = channel.unary_stream if streams else channel.unary_unary
    outcome(kind(f"/glowserve.v1.GlowService/{method}"), bytes(message), streams=streams)

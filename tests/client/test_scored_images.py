"""The way of good and bad images together through `iter_scores`: each ends as a score or an error."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

import glowserve
from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.blocking import Connect
from tests.client.serving import serve
from tests.servers import RunServer
from tests.service.metrics import ended
from tests.service.stubs import address

BLANK = np.zeros((8, 8), np.uint8)


def damaged(seed: int) -> bytes:
    """A PNG file whose header is whole and whose pixels are not."""
    return encode_png(np.random.default_rng(seed).integers(0, 256, (40, 40, 1), np.uint8))[:-400]


def collect(
    parts: Iterator[glowserve.ScoredImages],
) -> tuple[dict[int, float], dict[int, glowserve.ImageError]]:
    """The log-likelihoods and the errors, by index."""
    found: dict[int, float] = {}
    errors: dict[int, glowserve.ImageError] = {}
    for part in parts:
        assert len(part) == len(part.names) == len(part.indices)
        assert list(part.indices) == sorted(part.indices)
        found |= dict(zip(part.indices, part.log_likelihood.tolist(), strict=True))
        assert not {error.index for error in part.errors} & errors.keys()
        errors |= {error.index: error for error in part.errors}
    assert not found.keys() & errors.keys()
    return found, errors


def test_bad_images_of_every_kind_are_named_and_the_others_scored(
    answering: glowserve.Client, embedded: glowserve.Client, digits: UInt8Array, tmp_path: Path
) -> None:
    (tmp_path / "good.png").write_bytes(encode_png(digits[0]))
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "damaged.png").write_bytes(damaged(0))
    (tmp_path / "folder.png").mkdir()
    closed = io.BytesIO(b"")
    closed.close()
    images: list[Any] = [
        *(tmp_path / "good.png", str(tmp_path / "text.png"), tmp_path / "none.png", digits[1]),
        *(tmp_path / "damaged.png", b"no picture", np.zeros((9, 9), np.uint8), np.zeros((8, 8), float)),
        *(closed, tmp_path / "folder.png", digits[2], encode_png(digits[3])),
    ]

    found, errors = collect(answering.iter_scores(iter(images), seed=3))

    expected = embedded.score(digits[:4], seed=3).log_likelihood
    np.testing.assert_allclose([found[i] for i in (0, 3, 10, 11)], expected, rtol=1e-6)
    assert errors.pop(4).message.startswith("INVALID_ARGUMENT: the picture is damaged")
    assert {i: (error.name, error.message.split(";")[0].split(",")[0]) for i, error in errors.items()} == {
        1: (f"{tmp_path}/text.png", "10 bytes are not a picture that can be read"),
        2: (f"{tmp_path}/none.png", "No such file or directory"),
        5: ("images[5]", "INVALID_ARGUMENT: 10 bytes are not a picture that can be read"),
        6: ("images[6]", "INVALID_ARGUMENT: images.tensor.shape is [1"),
        7: ("images[7]", "an array of float64 is no image"),
        8: ("images[8]", "I/O operation on closed file."),
        9: (f"{tmp_path}/folder.png", "Is a directory"),
    }
    assert str(errors[2]) == f"{tmp_path}/none.png: No such file or directory"


def test_names_are_paths_also_of_open_files(answering: glowserve.Client, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encode_png(BLANK[..., None]))
    with path.open("rb") as file:
        (part,) = answering.iter_scores([path, str(path), file])
    assert part.names == (str(path),) * 3
    (part,) = answering.iter_scores(np.zeros((2, 8, 8, 1), np.uint8))
    assert part.names == ("images[0]", "images[1]")


def test_errors_arrive_although_no_image_can_be_read(answering: glowserve.Client) -> None:
    read = 0

    def missing() -> Iterator[Any]:
        nonlocal read
        for read in range(1, 301):
            yield f"nowhere-{read}.png"
        yield BLANK

    parts = answering.iter_scores(missing())
    first = next(parts)
    assert (len(first), len(first.errors), read) == (0, 64, 64)
    rest = list(parts)
    assert sum(len(part.errors) for part in rest) == 300 - 64
    assert sum(map(len, rest)) == 1


def test_many_damaged_pictures_end_few_streams(
    connect: Connect, run_server: RunServer, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    images = [damaged(i) if i % 3 == 0 else encode_png(digits[i]) for i in range(170)]
    with run_server() as server, connect(address(server)) as client:
        found, errors = collect(client.iter_scores(images))
        assert ended(server, "ScoreStream", "INVALID_ARGUMENT") < 20
    assert set(errors) == {i for i in range(170) if i % 3 == 0}
    expected = embedded.score(digits[:170]).log_likelihood
    np.testing.assert_allclose([found[i] for i in sorted(found)], expected[sorted(found)], rtol=1e-6)


def test_an_error_of_the_iterable_itself_is_raised(answering: glowserve.Client) -> None:
    def broken() -> Iterator[Any]:
        yield BLANK
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(answering.iter_scores(broken()))


class Failing(GlowServiceServicer):
    """Fails at requests with certain bytes, as after the crash of a decoder; the images' bytes are their scores."""

    def __init__(self, poison: set[bytes], *, more: int = 0) -> None:
        self.poison, self.more, self.images = poison, more, 0

    def ScoreStream(self, requests: Any, context: grpc.ServicerContext) -> Any:
        for request in requests:
            files = request.images.encoded.data
            self.images += len(files)
            if self.poison & set(files):
                status = status_pb2.Status(code=grpc.StatusCode.INTERNAL.value[0], message="it crashed")
                status.details.add().Pack(error_details_pb2.ErrorInfo(reason="INTERNAL", domain="glowserve"))
                context.abort_with_status(rpc_status.to_status(status))
            scores = [pb.ImageScore(log_likelihood=-float(file), finite=True) for file in files]
            yield pb.ScoreResponse(scores=scores + [pb.ImageScore()] * self.more)


def test_a_picture_that_the_service_fails_at_is_found_among_the_others(connect: Connect) -> None:
    images = [str(i).encode() for i in range(300)]
    with serve(Failing({b"5", b"170", b"171"})) as target, connect(target) as client:
        found, errors = collect(client.iter_scores(images))
    assert found == {i: -float(i) for i in range(300) if i not in (5, 170, 171)}
    assert {i: error.message for i, error in errors.items()} == dict.fromkeys(
        (5, 170, 171), "INTERNAL: it crashed"
    )


def test_a_service_that_always_fails_ends_the_call(connect: Connect) -> None:
    images = [str(i).encode() for i in range(3000)]
    with (
        serve(failing := Failing(set(images))) as target,
        connect(target) as client,
        pytest.raises(glowserve.RequestError, match="it crashed"),
    ):
        list(client.iter_scores(images))
    assert failing.images < 20_000


def test_an_answer_with_too_many_scores_is_an_error(connect: Connect) -> None:
    with (
        serve(Failing(set(), more=1)) as target,
        connect(target) as client,
        pytest.raises(glowserve.RequestError, match="answered 3 images with 4 scores"),
    ):
        list(client.iter_scores([b"1", b"2", b"3"]))

"""The way of images and latents to a service that takes less in one call than a portion has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

import glowserve
from glowserve.client.errors import RequestError
from glowserve.client.fitting import Fitting, size_of
from glowserve.client.inputs import Portion
from glowserve.images import UInt8Array, encode_png
from tests.client.blocking import Connect
from tests.servers import RunServer
from tests.service.metrics import ended
from tests.service.stubs import address

Form = Callable[[UInt8Array], Any]

FORMS: dict[str, Form] = {
    "arrays": lambda images: images,
    "files": lambda images: [encode_png(image) for image in images],
    "files and arrays": lambda images: [encode_png(images[0]), *images[1:]],
    "an iterator": lambda images: (encode_png(image) for image in images),
}
LIMITS: dict[str, dict[str, int]] = {
    "16 images": {"max_images_per_call": 16},
    "1 image": {"max_images_per_call": 1},
    "1000 pixels": {"max_pixels_per_call": 1000},
}


@pytest.fixture(scope="module", params=LIMITS)
def limited(request: pytest.FixtureRequest, run_server: RunServer) -> Iterator[Server]:
    """A server with limits below those of a portion."""
    with run_server(**LIMITS[request.param]) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
def test_every_image_has_the_score_of_one_large_call(
    connect: Connect, limited: Server, embedded: glowserve.Client, digits: UInt8Array, form: str
) -> None:
    expected = embedded.score(digits[:80], seed=3).log_likelihood
    with connect(address(limited)) as client:
        scores = client.score(FORMS[form](digits[:80]), seed=3)
        np.testing.assert_allclose(scores.log_likelihood, expected, rtol=1e-6)
        streamed = list(client.iter_scores(FORMS[form](digits[:80]), seed=3))
    np.testing.assert_allclose(np.concatenate([s.log_likelihood for s in streamed]), expected, rtol=1e-6)


def test_images_are_encoded_and_latents_decoded_in_order(
    connect: Connect, limited: Server, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    expected = embedded.encode(digits[:80])
    with connect(address(limited)) as client:
        encodings = client.encode(digits[:80])
        np.testing.assert_allclose(encodings.latents, expected.latents, atol=1e-4)
        np.testing.assert_array_equal(client.decode(expected.latents), embedded.decode(expected.latents))


def large(n: int) -> list[bytes]:
    """Pictures of half a megabyte."""
    generator = np.random.default_rng(0)
    return [encode_png(generator.integers(0, 256, (700, 700, 1), np.uint8)) for _ in range(n)]


def test_files_are_sent_in_messages_of_the_size_that_the_service_takes(
    connect: Connect, run_server: RunServer, embedded: glowserve.Client
) -> None:
    files = large(20)
    expected = embedded.score(files).log_likelihood
    with run_server(max_message_mib=1) as server, connect(address(server)) as client:
        np.testing.assert_allclose(client.score(files).log_likelihood, expected, rtol=1e-6)
        parts = list(client.iter_scores(files))
        np.testing.assert_allclose(np.concatenate([s.log_likelihood for s in parts]), expected, rtol=1e-6)
        np.testing.assert_allclose(
            client.encode(files[:3]).latents, embedded.encode(files[:3]).latents, atol=1e-4
        )
    with run_server(max_message_mib=1) as server, connect(address(server)) as client:
        parts = list(client.iter_scores(iter(files)))
        np.testing.assert_allclose(np.concatenate([s.log_likelihood for s in parts]), expected, rtol=1e-6)


def test_a_limit_is_remembered(connect: Connect, run_server: RunServer, digits: UInt8Array) -> None:
    with run_server(max_images_per_call=16) as server, connect(address(server)) as client:
        for _ in range(3):
            client.score(digits[:128])
        assert ended(server, "Score", "INVALID_ARGUMENT") == 1
        assert ended(server, "Score", "OK") == 3 * 8


def test_a_picture_that_is_too_large_by_itself_is_named(
    connect: Connect, run_server: RunServer, digits: UInt8Array
) -> None:
    generator = np.random.default_rng(0)
    heavy = encode_png(generator.integers(0, 256, (1500, 1000, 1), np.uint8))
    small = [encode_png(image) for image in digits[:70]]
    with (
        run_server(max_message_mib=1, max_pixels_per_call=2_000_000) as server,
        connect(address(server)) as client,
    ):
        with pytest.raises(glowserve.RequestError, match=rf"images\[70\]: with {len(heavy)} bytes") as caught:
            client.score([*small, heavy, *small])
        assert caught.value.code is grpc.StatusCode.RESOURCE_EXHAUSTED
        huge = Image.new("1", (2000, 2000))
        with pytest.raises(glowserve.RequestError, match=r"data\[70\]: it has 2000 x 2000") as caught:
            client.score([*small, huge, *small])
        assert caught.value.limits == {"max_pixels_per_call": 2_000_000}
        parts = list(client.iter_scores([*small, heavy, *small, huge, *small]))
        assert [index for part in parts for index in part.indices] == [
            *range(70),
            *range(71, 141),
            *range(142, 212),
        ]
        (first, second) = [error for part in parts for error in part.errors]
        assert (first.index, second.index) == (70, 141)
        assert first.message.startswith(f"RESOURCE_EXHAUSTED: with {len(heavy)} bytes it is larger")
        assert second.message.startswith("INVALID_ARGUMENT: it has 2000 x 2000")
        assert len(client.score(small)) == 70


def test_the_index_of_a_refused_image_or_latent_counts_all_of_them(answering: glowserve.Client) -> None:
    blank = encode_png(np.zeros((8, 8, 1), np.uint8))
    for call in (answering.score, answering.encode):
        with pytest.raises(
            glowserve.RequestError, match=r"^INVALID_ARGUMENT: images\.encoded\.data\[150\]: "
        ):
            call([*[blank] * 150, b"no picture"])
    latents = np.zeros((200, 64), np.float32)
    latents[150] = np.nan
    with pytest.raises(glowserve.RequestError, match="latents: row 150 is not finite"):
        answering.decode(latents)


def test_the_command_line_reports_a_file_that_is_too_large_and_scores_the_others(
    run_server: RunServer, digits: UInt8Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from glowserve.cli import main

    for i in range(80):
        (tmp_path / f"{i:02}.png").write_bytes(encode_png(digits[i]))
    heavy = np.random.default_rng(0).integers(0, 256, (1500, 1000, 1), np.uint8)
    (tmp_path / "70.png").write_bytes(encode_png(heavy))
    with run_server(max_message_mib=1, max_images_per_call=16) as server:
        assert main(["score", str(tmp_path), "--json", "--server", address(server)]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 79
    report, count = printed.err.splitlines()
    assert f"{tmp_path / '70.png'}: RESOURCE_EXHAUSTED: " in report
    assert count == "glowserve: 1 of 80 files could not be scored"


# Services that refuse for other reasons, or without end


def test_a_refusal_that_smaller_calls_do_not_change_is_raised_after_a_few() -> None:
    calls: list[int] = []

    def refuse(portion: Portion) -> None:
        calls.append(len(portion))
        raise RequestError(grpc.StatusCode.INVALID_ARGUMENT, "no", limits={"max_images_per_call": 0})

    with pytest.raises(RequestError, match="no"):
        list(Fitting().calls(refuse, [np.zeros((64, 2, 2, 1), np.uint8)]))
    assert calls == [64, 1]
    calls.clear()
    with pytest.raises(RequestError, match="no"):
        list(Fitting().calls(refuse, [[b""] * 64]))
    assert len(calls) <= 2


def test_a_quota_without_details_is_no_limit_of_a_message() -> None:
    def refuse(portion: Portion) -> None:
        calls.append(len(portion))
        raise RequestError(grpc.StatusCode.RESOURCE_EXHAUSTED, "quota exceeded")

    calls: list[int] = []
    with pytest.raises(RequestError, match="quota"):
        list(Fitting().calls(refuse, [np.zeros((64, 2, 2, 1), np.uint8)]))
    assert calls == [64]


def test_a_stream_ends_whatever_is_held_back_while_a_later_file_is_too_large() -> None:
    """A portion that can be split waits for the answers before it; the file after it cannot be."""
    opened = 0

    def open_stream(parts: Iterator[Portion]) -> Iterator[list[int]]:
        nonlocal opened
        opened += 1
        assert opened < 20
        portions = list(parts)
        if any(size_of(portion) > 200 for portion in portions):
            raise RequestError(
                grpc.StatusCode.RESOURCE_EXHAUSTED, "Received message larger than max (1 vs. 2)"
            )
        yield from ([len(portion)] for portion in portions)

    portions: list[Portion] = [[b"a" * 150, b"b" * 150], [b"c" * 1300]]
    with pytest.raises(RequestError, match=r"images\[2\]: with 1300 bytes it is larger"):
        list(Fitting().stream(open_stream, portions))

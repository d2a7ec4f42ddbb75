"""The client for threads, and that its twins, for event loops and without a server, give the same answers."""

from __future__ import annotations

import asyncio
import io
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server
from PIL import Image

import glowserve
from glowserve.images import (
    UInt8Array,
    encode_png,
    prepare_encoded,
    to_pil,
)
from glowserve.results import Encodings
from glowserve.scores import Scores
from glowserve.runtime.repository import Bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import glow_service_pb2_grpc

RunServer = Callable[..., Any]


BLANK = np.zeros((8, 8), np.uint8)


class Five(NamedTuple):
    """Five digits, and a folder that holds the same as 0.png to 4.png, and the first as 0.bmp."""

    images: UInt8Array
    folder: Path


# Every form in which images may be passed, and how many images that is.
FORMS: dict[str, tuple[Callable[[Five], Any], int]] = {
    "a path": (lambda five: five.folder / "0.png", 1),
    "a path as text": (lambda five: str(five.folder / "0.png"), 1),
    "a path of a format that is converted": (lambda five: five.folder / "0.bmp", 1),
    "bytes": (lambda five: encode_png(five.images[0]), 1),
    "a Pillow image": (lambda five: to_pil(five.images[0]), 1),
    "an array of two dimensions": (lambda five: five.images[0, :, :, 0], 1),
    "an array of three dimensions": (lambda five: five.images[0], 1),
    "an array of four dimensions": (lambda five: five.images, 5),
    "an array in another order of memory": (lambda five: np.asfortranarray(five.images), 5),
    "paths": (lambda five: sorted(five.folder.glob("*.png")), 5),
    "paths as text": (lambda five: [str(path) for path in sorted(five.folder.glob("*.png"))], 5),
    "several bytes": (lambda five: [encode_png(image) for image in five.images], 5),
    "Pillow images": (lambda five: tuple(to_pil(image) for image in five.images), 5),
    "arrays of two dimensions": (lambda five: [image[:, :, 0] for image in five.images], 5),
    "arrays of three dimensions": (lambda five: list(five.images), 5),
    "arrays of both kinds": (lambda five: [five.images[0], five.images[1, :, :, 0], *five.images[2:]], 5),
    "some of everything": (
        lambda five: [
            five.folder / "0.png",
            str(five.folder / "1.png"),
            encode_png(five.images[2]),
            to_pil(five.images[3]),
            five.images[4],
        ],
        5,
    ),
    "an array that is more than fits one call": (lambda five: five.images[np.arange(200) % 5], 200),
    "paths that are more than fit one call": (lambda five: 40 * sorted(five.folder.glob("*.png")), 200),
}


@pytest.fixture(scope="module")
def five(digits: UInt8Array, tmp_path_factory: pytest.TempPathFactory) -> Five:
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(digits[:5]):
        to_pil(image).save(folder / f"{i}.png")
    to_pil(digits[0]).save(folder / "0.bmp")
    return Five(digits[:5], folder)


def asynchronously(server: Server, method: str, *arguments: Any, **options: Any) -> Any:
    """The answer of an AsyncClient."""

    async def run() -> Any:
        async with glowserve.AsyncClient(f"127.0.0.1:{server.port}") as client:
            return await getattr(client, method)(*arguments, **options)

    return asyncio.run(run())


def same_scores(one: Scores, other: Scores) -> None:
    np.testing.assert_allclose(one.log_likelihood, other.log_likelihood, rtol=1e-6)
    np.testing.assert_allclose(one.bits_per_dim, other.bits_per_dim, rtol=1e-6)
    np.testing.assert_allclose(one.percentile, other.percentile, atol=0.5)
    np.testing.assert_array_equal(one.finite, other.finite)
    assert (one.model, one.version, one.seed) == (other.model, other.version, other.seed)


def same_encodings(one: Encodings, other: Encodings) -> None:
    np.testing.assert_allclose(one.latents, other.latents, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(one.mismatched_values, other.mismatched_values)
    assert (one.model, one.version) == (other.model, other.version)


@pytest.mark.parametrize("form", FORMS)
def test_client_async_client_and_open_bundle_agree_on_images_in_every_form(
    client: glowserve.Client, server: Server, embedded: Any, five: Five, form: str
) -> None:
    make, n = FORMS[form]
    images = make(five)
    expected = embedded.score(five.images, seed=4).log_likelihood
    for scores in (
        client.score(images, seed=4),
        asynchronously(server, "score", images, seed=4),
        embedded.score(images, seed=4),
    ):
        np.testing.assert_allclose(scores.log_likelihood, expected[np.arange(n) % 5], rtol=1e-6)
        assert (len(scores), scores.model, scores.version, scores.seed) == (n, "digits", 1, 4)
    for source in (client, Blocking(server), embedded):
        parts = list(source.iter_scores(images, seed=4))
        assert {(part.model, part.version, part.seed) for part in parts} == {("digits", 1, 4)}
        together = np.concatenate([part.log_likelihood for part in parts])
        np.testing.assert_allclose(together, expected[np.arange(n) % 5], rtol=1e-6)
    encodings = client.encode(images)
    assert encodings.latents.shape == (n, 64)
    same_encodings(encodings, embedded.encode(images))
    same_encodings(encodings, asynchronously(server, "encode", images))


def test_the_three_draw_decode_and_describe_alike(
    client: glowserve.Client, server: Server, embedded: Any, bundle: Bundle
) -> None:
    drawn = client.sample(70, seed=3, temperature=0.8)
    assert drawn.images.shape == (70, 8, 8, 1)
    assert drawn.images.dtype == np.uint8
    assert (len(drawn), drawn.model, drawn.version, drawn.seed) == (70, "digits", 1, 3)
    encoded = client.encode(drawn.images)
    decoded = client.decode(encoded.latents)
    np.testing.assert_array_equal(
        decoded[encoded.mismatched_values == 0] >> 4, drawn.images[encoded.mismatched_values == 0] >> 4
    )
    for answer in (
        lambda method, *arguments, **options: asynchronously(server, method, *arguments, **options),
        lambda method, *arguments, **options: getattr(embedded, method)(*arguments, **options),
    ):
        other = answer("sample", 70, seed=3, temperature=0.8)
        np.testing.assert_array_equal(other.images, drawn.images)
        assert (other.model, other.version, other.seed) == ("digits", 1, 3)
        np.testing.assert_array_equal(answer("decode", encoded.latents), decoded)
        np.testing.assert_array_equal(
            answer("interpolate", drawn.images[0], encode_png(drawn.images[1]), steps=40),
            client.interpolate(drawn.images[0], drawn.images[1], steps=40),
        )
        assert answer("models") == client.models()
        assert answer("manifest") == client.manifest() == bundle.manifest
        assert answer("manifest", model="digits", version=1) == bundle.manifest
    (model,) = client.models()
    assert (model.name, model.version, model.height, model.width, model.channels, model.n_bits) == (
        "digits", 1, 8, 8, 1, 4,
    )  # fmt: skip


def test_the_seed_of_a_score_is_0_and_that_of_samples_drawn_unless_given(
    client: glowserve.Client, embedded: Any, digits: UInt8Array
) -> None:
    for source in (client, embedded):
        same_scores(source.score(digits[:3]), source.score(digits[:3], seed=0))
        one, other = source.sample(4, temperature=0.7), source.sample(4, temperature=0.7)
        assert one.seed != other.seed
        np.testing.assert_array_equal(source.sample(4, seed=one.seed, temperature=0.7).images, one.images)
        assert len(source.sample(temperature=0)) == 1


def test_samples_come_some_at_a_time(client: glowserve.Client, embedded: Any) -> None:
    for source in (client, embedded):
        parts = list(source.iter_samples(70, seed=5, temperature=0.7))
        assert len(parts) > 1
        assert {part.seed for part in parts} == {5}
        np.testing.assert_array_equal(
            np.concatenate([part.images for part in parts]), client.sample(70, seed=5, temperature=0.7).images
        )


def test_leaving_samples_midway_ends_the_call(client: glowserve.Client, server: Server) -> None:
    drawn = client.iter_samples(100_000, temperature=0)
    next(drawn)
    drawn.close()
    deadline = time.monotonic() + 60
    while server.metrics.registry.get_sample_value("glowserve_requests_in_flight"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_large_pictures_are_sent_in_calls_that_the_service_takes(
    client: glowserve.Client, embedded: Any
) -> None:
    """Six of 16 megapixels: a call may bring 32."""
    buffer = io.BytesIO()
    Image.new("1", (4000, 4000)).save(buffer, "PNG")
    scores = client.score([buffer.getvalue()] * 6)
    np.testing.assert_allclose(scores.log_likelihood, embedded.score(BLANK).log_likelihood[0])
    assert len(embedded.score([buffer.getvalue()] * 6)) == 6


def test_a_picture_of_any_size_is_brought_to_the_models(
    client: glowserve.Client, embedded: Any, bundle: Bundle
) -> None:
    picture = Image.effect_noise((50, 30), 80).convert("RGB")
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    prepared = prepare_encoded(buffer.getvalue(), *bundle.shape, bundle.preparation)
    for source in (client, embedded):
        same_scores(source.score(picture), source.score(prepared))


def test_a_client_may_be_shared_between_threads(client: glowserve.Client, digits: UInt8Array) -> None:
    expected = client.score(digits).log_likelihood
    with ThreadPoolExecutor(16) as pool:
        for first, scores in zip(
            range(0, 160, 5),
            pool.map(lambda i: client.score(digits[i : i + 5]), range(0, 160, 5)),
            strict=True,
        ):
            np.testing.assert_allclose(scores.log_likelihood, expected[first : first + 5], rtol=1e-5)


# What goes wrong


@pytest.mark.parametrize(
    ("call", "code", "words"),
    [
        (lambda source: source.score(b"no picture"), "INVALID_ARGUMENT", "images.encoded.data[0]: 10 bytes are not"),
        (lambda source: source.score(np.zeros((9, 9), np.uint8)), "INVALID_ARGUMENT", "shape is [1, 9, 9, 1]"),
        (lambda source: source.encode(np.zeros((8, 8, 3), np.uint8)), "INVALID_ARGUMENT", "shape is [1, 8, 8, 3]"),
        (lambda source: source.sample(0), "INVALID_ARGUMENT", "n is 0"),
        (lambda source: source.sample(100_001), "INVALID_ARGUMENT", "n is 100001"),
        (lambda source: list(source.iter_samples(0)), "INVALID_ARGUMENT", "n is 0"),
        (lambda source: source.sample(1, temperature=-1), "INVALID_ARGUMENT", "temperature is -1.0"),
        (lambda source: source.sample(1, temperature=float("nan")), "INVALID_ARGUMENT", "temperature is nan"),
        (lambda source: source.sample(1, temperature=1e39), "INVALID_ARGUMENT", "temperature is inf"),
        (lambda source: source.sample(1, temperature=1e30, seed=0), "FAILED_PRECONDITION", "sample 0 does not decode"),
        (lambda source: source.decode(np.zeros((2, 63))), "INVALID_ARGUMENT", "latents.shape is [2, 63]"),
        (lambda source: source.decode(np.full((2, 64), np.nan)), "INVALID_ARGUMENT", "latents: row 0 is not finite"),
        (lambda source: source.decode(np.full((2, 64), 1e38)), "FAILED_PRECONDITION", "latents: row 0 does not decode"),
        (
            lambda source: list(source.iter_scores([BLANK] * 100 + [b"no picture"])),
            "INVALID_ARGUMENT",
            "images.encoded.data[0]: 10 bytes are not",
        ),
        (lambda source: source.interpolate(BLANK, BLANK, steps=1), "INVALID_ARGUMENT", "steps is 1"),
        (lambda source: source.interpolate(BLANK, BLANK, steps=257), "INVALID_ARGUMENT", "steps is 257"),
        (lambda source: source.interpolate(BLANK, b"no"), "INVALID_ARGUMENT", "images.encoded.data[1]: 2 bytes"),
        (lambda source: source.score(BLANK, model="nobody"), "NOT_FOUND", "'nobody'"),
        (lambda source: list(source.iter_scores(BLANK, model="nobody")), "NOT_FOUND", "'nobody'"),
        (lambda source: source.interpolate(BLANK, BLANK, version=2), "NOT_FOUND", "version 2"),
        (lambda source: source.encode(BLANK, version=2), "NOT_FOUND", "version 2"),
        (lambda source: source.sample(1, model="nobody"), "NOT_FOUND", "'nobody'"),
        (lambda source: source.decode(np.zeros((1, 64)), version=2), "NOT_FOUND", "version 2"),
        (lambda source: source.manifest(model="nobody"), "NOT_FOUND", "'nobody'"),
    ],
)  # fmt: skip
def test_a_refusal_is_an_error_with_code_and_message_from_all_three(
    client: glowserve.Client,
    server: Server,
    embedded: Any,
    call: Callable[[Any], Any],
    code: str,
    words: str,
) -> None:
    for source in (client, Blocking(server), embedded):
        with pytest.raises(glowserve.RequestError) as caught:
            call(source)
        assert caught.value.code is grpc.StatusCode[code]
        assert words in caught.value.message
        assert not caught.value.message.startswith("requests")
        assert str(caught.value) == f"{code}: {caught.value.message}"
        assert caught.value.__cause__ is None


class Blocking:
    """An AsyncClient with the methods of a Client."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def __getattr__(self, method: str) -> Any:
        return lambda *arguments, **options: asynchronously(self._server, method, *arguments, **options)

    def iter_samples(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        return self._iterate("iter_samples", *arguments, **options)

    def iter_scores(self, *arguments: Any, **options: Any) -> Iterator[Any]:
        return self._iterate("iter_scores", *arguments, **options)

    def _iterate(self, method: str, *arguments: Any, **options: Any) -> Iterator[Any]:
        async def run() -> list[Any]:
            async with glowserve.AsyncClient(f"127.0.0.1:{self._server.port}") as client:
                return [part async for part in getattr(client, method)(*arguments, **options)]

        return iter(asyncio.run(run()))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda source: source.score([]), ValueError, "no images"),
        (lambda source: source.encode(()), ValueError, "no images"),
        (lambda source: source.score(np.zeros((0, 8, 8, 1), np.uint8)), ValueError, "no images"),
        (lambda source: source.decode(np.zeros((0, 64))), ValueError, r"latents have shape \[0, 64\]"),
        (lambda source: source.decode(np.zeros(64)), ValueError, r"latents have shape \[64\]"),
        (lambda source: source.score(BLANK, seed=-1), ValueError, "seed is -1"),
        (lambda source: list(source.iter_scores(BLANK, seed=-1)), ValueError, "seed is -1"),
        (lambda source: list(source.iter_scores(7)), TypeError, "int is no image"),
        (lambda source: list(source.iter_scores(iter([None]))), TypeError, "NoneType is no image"),
        (lambda source: source.interpolate(BLANK, "nowhere.png"), FileNotFoundError, "nowhere.png"),
        (lambda source: source.interpolate(BLANK, [BLANK]), TypeError, "list is no image"),
        (lambda source: source.interpolate(BLANK, BLANK, steps=-1), ValueError, "-1"),
        (lambda source: source.score(BLANK, seed=2**64), ValueError, "seed is 18446744073709551616"),
        (lambda source: source.sample(1, seed=-1), ValueError, "seed is -1"),
        (lambda source: list(source.iter_samples(1, seed=-1)), ValueError, "seed is -1"),
        (lambda source: source.sample(-1), ValueError, "-1"),
        (lambda source: source.score(np.zeros((8, 8))), glowserve.InvalidImageError, "float64"),
        (lambda source: source.score(np.zeros((8, 8, 2), np.uint8)), glowserve.InvalidImageError, r"\[8, 8, 2\]"),
        (lambda source: source.score([np.zeros((2, 8, 8, 1), np.uint8)]), glowserve.InvalidImageError, "in a list"),
        (lambda source: source.score(7), TypeError, "int is no image"),
        (lambda source: source.score([b"", None]), TypeError, "NoneType is no image"),
        (lambda source: source.score("nowhere.png"), FileNotFoundError, "nowhere.png"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_an_error_before_anything_is_sent_from_all_three(
    client: glowserve.Client,
    server: Server,
    embedded: Any,
    call: Callable[[Any], Any],
    kind: type[Exception],
    words: str,
) -> None:
    for source in (client, Blocking(server), embedded):
        with pytest.raises(kind, match=words):
            call(source)


def test_a_file_that_is_no_picture_is_named(
    client: glowserve.Client, embedded: Any, tmp_path: Path, digits: UInt8Array
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode_png(digits[0]))
    bad.write_text("no picture")
    for source in (client, embedded):
        for images in (bad, str(bad), [good, bad]):
            with pytest.raises(glowserve.InvalidImageError, match=f"^{bad}: 10 bytes are not a picture"):
                source.score(images)


# Connections


@contextmanager
def free_port() -> Iterator[int]:
    """A port that nobody listens on, for a moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    yield port


def test_a_service_that_is_not_there_is_unavailable() -> None:
    with free_port() as port, glowserve.Client(f"127.0.0.1:{port}") as client:
        with pytest.raises(glowserve.RequestError) as caught:
            client.score(BLANK)
        assert caught.value.code is grpc.StatusCode.UNAVAILABLE


def test_a_call_waits_for_a_service_that_comes_up_a_little_later(
    run_server: RunServer, digits: UInt8Array
) -> None:
    with (
        free_port() as port,
        glowserve.Client(f"127.0.0.1:{port}") as client,
        ThreadPoolExecutor() as pool,
    ):
        call = pool.submit(client.score, digits[:3])
        time.sleep(0.2)
        assert not call.done()
        with run_server(port=port):
            assert len(call.result(60)) == 3


class Moody(glow_service_pb2_grpc.GlowServiceServicer):
    """Answers with a status some times before it answers well."""

    def __init__(self, code: grpc.StatusCode, times: int) -> None:
        self.code = code
        self.left = times
        self.calls = 0

    def answer(self, context: grpc.ServicerContext) -> None:
        self.calls += 1
        if self.left:
            self.left -= 1
            context.abort(self.code, "not now")

    def ListModels(self, request: Any, context: grpc.ServicerContext) -> pb.ListModelsResponse:
        self.answer(context)
        return pb.ListModelsResponse()

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Iterator[pb.SampleResponse]:
        self.answer(context)
        tensor = {"dtype": 1, "shape": [1, 1, 1, 1], "data": b"\7"}
        yield pb.SampleResponse(images=pb.Images(tensor=tensor))  # type: ignore[arg-type]


@contextmanager
def serving(servicer: Moody) -> Iterator[str]:
    with ThreadPoolExecutor() as pool:
        server = grpc.server(pool)
        glow_service_pb2_grpc.add_GlowServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


@pytest.mark.parametrize(("method", "times"), [("models", 4), ("sample", 1)])
def test_unavailable_is_tried_again(method: str, times: int) -> None:
    servicer = Moody(grpc.StatusCode.UNAVAILABLE, times)
    with serving(servicer) as target, glowserve.Client(target) as client:
        getattr(client, method)()
    assert servicer.calls == times + 1


@pytest.mark.parametrize(
    ("code", "calls"),
    [("UNAVAILABLE", 5), ("INVALID_ARGUMENT", 1), ("RESOURCE_EXHAUSTED", 1), ("INTERNAL", 1)],
)
def test_only_unavailable_is_tried_again_and_not_for_ever(code: str, calls: int) -> None:
    servicer = Moody(grpc.StatusCode[code], 100)
    with (
        serving(servicer) as target,
        glowserve.Client(target) as client,
        pytest.raises(glowserve.RequestError, match=f"{code}: not now"),
    ):
        client.models()
    assert servicer.calls == calls


def test_a_call_ends_at_its_timeout(run_server: RunServer, digits: UInt8Array) -> None:
    with (
        run_server(max_queue_delay_ms=600_000.0, drain_seconds=0.0) as server,
        glowserve.Client(f"127.0.0.1:{server.port}", timeout=0.3) as client,
    ):
        for call in (lambda: client.score(digits[:2]), lambda: client.encode(digits[:2])):
            with pytest.raises(glowserve.RequestError) as caught:
                call()
            assert caught.value.code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert len(client.models()) == 1


def test_ctrl_c_does_not_wait_for_a_call_that_it_left_half_way(server: Server) -> None:
    client = glowserve.Client(f"127.0.0.1:{server.port}")
    with pytest.raises(KeyboardInterrupt), client:
        raise KeyboardInterrupt

    assert client.models()  # it has not been closed: that is what can wait for ever
    client.close()


def test_a_closed_client_asks_nothing(server: Server) -> None:
    with glowserve.Client(f"127.0.0.1:{server.port}") as client:
        client.models()
    with pytest.raises(ValueError, match="closed"):
        client.models()

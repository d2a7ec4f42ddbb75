"""Explanations through a bundle in this process and through a service: the same numbers, and what refuses them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

import glowserve
from glowserve.heat_map import heat_map
from glowserve.images import UInt8Array, encode_png
from glowserve.runtime.engine import Engine
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle
from glowserve.scores import Calibration, Part
from glowserve.v1 import glow_service_pb2_grpc
from tests.client.blocking import Connect
from tests.client.conftest import CLIENTS
from tests.client.serving import serve
from tests.servers import RunServer
from tests.service.bundles import change_calibration, without_calibration
from tests.service.stubs import address

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models"
Callers = Callable[[Path], list[Any]]


def values_of(rows: tuple[tuple[Part, ...], ...], name: str, level: int) -> list[float]:
    """The values of one part of each image."""
    return [next(part.value for part in row if (part.name, part.level) == (name, level)) for row in rows]


def test_deviations_are_those_of_the_graph_and_parts_are_scores(
    answering: glowserve.Client, bundle: Bundle, engine: Engine, digits: UInt8Array
) -> None:
    images = digits[:5]
    found = answering.explain(images)
    assert (found.model, found.version, len(found)) == ("digits", 1, 5)
    assert (found.deviations.dtype, found.deviations.shape) == (np.float32, (5, 8, 8))
    expected = Explainer(bundle, engine).explain(images, dequantization_noise(0, images))
    np.testing.assert_allclose(found.deviations, expected, atol=2e-3)
    assert found.finite.tolist() == [True] * 5
    names = ["log_prior", "log_det", "complexity_bits_per_dim"]
    scores = answering.score(images, scores=names)
    assert scores.log_prior is not None
    assert scores.log_det is not None
    for level in range(1, bundle.manifest.flow.levels + 1):
        np.testing.assert_allclose(
            values_of(found.parts, "log_prior", level), scores.log_prior[:, level - 1], rtol=1e-5
        )
        np.testing.assert_allclose(
            values_of(found.parts, "log_det", level), scores.log_det[:, level - 1], rtol=1e-5
        )
    np.testing.assert_allclose(values_of(found.parts, "bits_per_dim", 0), scores.bits_per_dim, rtol=1e-6)
    complexity = values_of(found.parts, "complexity_bits_per_dim", 0)
    np.testing.assert_array_equal(complexity, scores.complexity_bits_per_dim)
    assert {len(row) for row in found.parts} == {2 * bundle.manifest.flow.levels + 2}


def test_a_blank_image_is_too_likely_and_noise_too_unlikely(
    answering: glowserve.Client, rng: np.random.Generator
) -> None:
    noise = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    found = answering.explain(np.stack([np.zeros_like(noise), noise]))
    assert found.deviations[1].mean() < -1
    for row in found.parts:
        distances = [abs(part.deviation) for part in row]
        assert distances == sorted(distances, reverse=True)
    blank, noisy = ({part.name: part.deviation for part in row if not part.level} for row in found.parts)
    assert blank["complexity_bits_per_dim"] < -2
    assert noisy["complexity_bits_per_dim"] > 2
    assert noisy["bits_per_dim"] > 2
    assert heat_map(noise, found.deviations[1]).width > 512


@pytest.mark.parametrize("form", ["array", "files", "iterator"])
def test_images_beyond_one_call_are_explained_in_order(
    answering: glowserve.Client, digits: UInt8Array, form: str
) -> None:
    images = digits[np.arange(200) % 50]
    forms: dict[str, Callable[[], Any]] = {
        "array": lambda: images,
        "files": lambda: [encode_png(image) for image in images],
        "iterator": lambda: iter(images),
    }
    found = answering.explain(forms[form]())
    first = answering.explain(digits[:50])
    assert len(found) == len(found.parts) == len(found.finite) == 200
    for part in range(4):
        rows = slice(50 * part, 50 * part + 50)
        np.testing.assert_allclose(found.deviations[rows], first.deviations, atol=2e-3)
        np.testing.assert_allclose(
            values_of(found.parts[rows], "log_det", 1), values_of(first.parts, "log_det", 1), rtol=1e-5
        )


def test_a_service_that_takes_less_in_one_call_is_sent_less(
    connect: Connect, run_server: RunServer, embedded: glowserve.Client, digits: UInt8Array
) -> None:
    expected = embedded.explain(digits[:40]).deviations
    with run_server(max_images_per_call=7) as server, connect(address(server)) as client:
        np.testing.assert_allclose(client.explain(digits[:40]).deviations, expected, atol=2e-3)


def test_a_picture_of_any_size_is_explained_as_it_is_scored(
    answering: glowserve.Client, tmp_path: Path
) -> None:
    Image.effect_noise((300, 200), 90).convert("RGB").save(tmp_path / "photo.jpg")
    assert answering.explain(tmp_path / "photo.jpg").deviations.shape == (1, 8, 8)


def test_a_damaged_picture_is_named_by_its_index_among_all(
    answering: glowserve.Client, digits: UInt8Array
) -> None:
    files = [encode_png(image) for image in digits[:80]]
    files[70] = files[70][:-30]
    with pytest.raises(glowserve.RequestError, match=r"^INVALID_ARGUMENT: images\.encoded\.data\[70\]: "):
        answering.explain(files)
    with pytest.raises(ValueError, match="there are no images"):
        answering.explain([])
    with pytest.raises(glowserve.RequestError, match=r"this model takes \[N, 8, 8, 1\]"):
        answering.explain(np.zeros((2, 9, 8, 1), np.uint8))


# Bundles that lack what images are compared with


@pytest.fixture
def callers(run_server: RunServer, request: pytest.FixtureRequest) -> Callers:
    """Each client of a repository with the model `digits`."""

    def make(repository: Path) -> list[Any]:
        running = run_server(repository=repository)
        server = running.__enter__()
        clients = [connect(address(server)) for connect in CLIENTS.values()]

        def end() -> None:
            for client in clients:
                client.__exit__(None, None, None)
            running.__exit__(None, None, None)

        request.addfinalizer(end)
        return [*clients, glowserve.open(repository / "digits")]

    return make


def refused(client: Any, images: UInt8Array) -> tuple[str, str]:
    """The reason and the message of a refused explanation; the bundle scores all the same."""
    assert np.isfinite(client.score(images).log_likelihood).all()
    with pytest.raises(glowserve.RequestError) as caught:
        client.explain(images)
    assert caught.value.code is grpc.StatusCode.FAILED_PRECONDITION
    return caught.value.reason, caught.value.message


def test_a_bundle_of_an_older_version_is_refused_with_the_command_that_exports_what_is_missing(
    callers: Callers, digits: UInt8Array
) -> None:
    for client in callers(OLD):
        reason, message = refused(client, digits[:2])
        assert reason == "MISSING_FILE"
        assert message.startswith("digits version 1 has no explain.onnx, ")
        assert "`glowserve export CHECKPOINT REPOSITORY/digits`" in message


def test_a_bundle_without_calibration_is_refused_with_the_command_that_calibrates_it(
    callers: Callers, bundle: Bundle, digits: UInt8Array, tmp_path: Path
) -> None:
    without_calibration(bundle.path, tmp_path / "digits" / "1")
    for client in callers(tmp_path):
        reason, message = refused(client, digits[:2])
        assert reason == "NOT_CALIBRATED"
        assert message.startswith(
            "digits version 1 has 0 calibration images, of which explanations take 2 or"
        )
        assert "`glowserve calibrate REPOSITORY/digits --data DATA`" in message


def test_one_calibration_image_has_no_spread(
    callers: Callers, bundle: Bundle, digits: UInt8Array, tmp_path: Path
) -> None:
    def of_one(calibration: Calibration) -> Calibration:
        first = {each.name: getattr(calibration.images, each.name)[:1] for each in fields(calibration.images)}
        images = replace(calibration.images, **first)
        return replace(calibration, images=images, complexity=calibration.complexity[:1])

    change_calibration(bundle.path, tmp_path / "digits" / "1", of_one)
    for client in callers(tmp_path):
        assert refused(client, digits[:2])[0] == "NOT_CALIBRATED"


def test_the_complexity_is_missing_where_the_bundle_was_calibrated_with_another_library(
    callers: Callers, bundle: Bundle, digits: UInt8Array, tmp_path: Path
) -> None:
    target = tmp_path / "digits" / "1"
    change_calibration(bundle.path, target, lambda each: replace(each, codec=each.codec + 1))
    for client in callers(tmp_path):
        (row,) = client.explain(digits[:1]).parts
        assert "complexity_bits_per_dim" not in {part.name for part in row}
        assert {"bits_per_dim", "log_prior", "log_det"} == {part.name for part in row}
        assert all(math.isfinite(part.deviation) for part in row)


def test_a_version_or_model_that_is_not_there_is_named(
    answering: glowserve.Client, digits: UInt8Array
) -> None:
    for wrong in ({"model": "nobody"}, {"version": 9}):
        with pytest.raises(glowserve.RequestError) as caught:
            answering.explain(digits[:1], **wrong)  # type: ignore[arg-type]
        assert caught.value.code is grpc.StatusCode.NOT_FOUND
    with pytest.raises(TypeError, match="pass its name"):
        answering.explain(digits[:1], model=3)  # type: ignore[arg-type]


def test_a_service_that_is_older_than_explanations_is_said_to_be(
    connect: Connect, digits: UInt8Array
) -> None:
    with serve(glow_service_pb2_grpc.GlowServiceServicer()) as target, connect(target) as client:
        with pytest.raises(
            glowserve.RequestError, match=r"the service may be older than this client$"
        ) as caught:
            client.explain(digits[:1])
        assert caught.value.code is grpc.StatusCode.UNIMPLEMENTED

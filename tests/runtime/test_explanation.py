"""Explanations: that the terms of a place add up, what they are compared with, and which bundles have none."""

from __future__ import annotations

import hashlib
import io
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import glowserve.runtime.engine
from glowserve.images import UInt8Array
from glowserve.runtime.config import Limits, RuntimeConfig
from glowserve.runtime.engine import Engine, Float32Array
from glowserve.runtime.errors import BundleError, MissingFileError
from glowserve.runtime.explanation import (
    Explainer,
    Places,
    measure_places,
    read_places,
    sum_error,
    write_places,
)
from glowserve.runtime.randomness import dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle, open_bundle
from glowserve.runtime.runner import EngineRunner, run_now

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models" / "digits"
CPU = RuntimeConfig(device="cpu", threads=1)


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Bundle:
    """A copy of the bundle, to damage."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "digits" / "1")
    return newest_bundle(tmp_path / "digits" / "1")


def _replace(bundle: Bundle, name: str, data: bytes) -> None:
    """Replaces a file, and its hash in the manifest in memory."""
    (bundle.path / name).write_bytes(data)
    entry = next(file for file in bundle.manifest.files if file.name == name)
    entry.sha256, entry.size = hashlib.sha256(data).hexdigest(), len(data)


def _deviations(bundle: Bundle, engine: Engine, images: UInt8Array) -> Float32Array:
    return Explainer(bundle, engine).explain(images, dequantization_noise(0, images))


# Terms


def test_the_terms_add_up_to_the_log_likelihood(engine: Engine, digits: UInt8Array) -> None:
    noise = dequantization_noise(0, digits)
    terms, nats = engine.explain(digits, noise), engine.forward(digits, noise).log_likelihood
    assert (terms.dtype, terms.shape) == (np.float32, (179, 8, 8))
    assert sum_error(terms, nats).max() < 2e-6
    np.testing.assert_allclose(terms.sum(axis=(1, 2)), nats, rtol=1e-5)


def test_the_graph_is_opened_once_when_it_is_first_needed(
    bundle: Bundle, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    open_sessions = glowserve.runtime.engine.open_sessions

    def counted(*args: object) -> object:
        opened.append(args)
        return open_sessions(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(glowserve.runtime.engine, "open_sessions", counted)
    engine = Engine(bundle, CPU)
    noise = dequantization_noise(0, digits)
    engine.forward(digits, noise)
    assert len(opened) == 1
    explainer = Explainer(bundle, engine)
    with ThreadPoolExecutor(4) as pool:
        maps = list(pool.map(explainer.explain, [digits] * 8, [noise] * 8))
    assert len(opened) == 2
    for each in maps:
        np.testing.assert_array_equal(each, maps[0])


# Deviations


def test_deviations_do_not_depend_on_the_batch(bundle: Bundle, engine: Engine, digits: UInt8Array) -> None:
    whole = _deviations(bundle, engine, digits)
    assert (whole.dtype, whole.shape) == (np.float32, (179, 8, 8))
    runner = EngineRunner(bundle, engine, Limits(max_batch_size=7))
    parts = run_now(runner.explain(digits, dequantization_noise(0, digits)))
    np.testing.assert_array_equal(parts, whole)
    np.testing.assert_array_equal(_deviations(bundle, engine, digits[5:6]), whole[5:6])


def test_held_out_images_deviate_by_one_spread_and_not_on_average(
    bundle: Bundle, engine: Engine, digits: UInt8Array
) -> None:
    """They are others than those that the mean and the spread were measured on."""
    deviations = _deviations(bundle, engine, digits)
    assert abs(deviations.mean()) < 0.15
    assert 0.8 < deviations.std() < 1.6


def test_a_planted_patch_is_too_unlikely_where_it_is(
    bundle: Bundle, engine: Engine, digits: UInt8Array
) -> None:
    planted = digits[:16].copy()
    planted[:, 4:, 4:] = 255 - planted[:, 4:, 4:]
    before, after = (_deviations(bundle, engine, images) for images in (digits[:16], planted))
    difference = (after - before).mean(axis=0)
    assert difference[4:, 4:].mean() < -1
    assert difference[4:, 4:].mean() < 3 * difference[:4, :4].mean()


def test_an_image_without_a_finite_likelihood_has_deviations_that_are_no_numbers() -> None:
    places = Places(np.zeros((2, 2), np.float32), np.ones((2, 2), np.float32))
    terms = np.array([[[1, np.nan], [np.inf, -np.inf]]], np.float32)
    deviations = places.deviations(terms)
    assert deviations[0, 0, 0] == 1
    assert not np.isfinite(deviations[0].reshape(-1)[1:]).any()


def test_places_are_the_mean_and_the_standard_deviation_whatever_the_batches(
    rng: np.random.Generator,
) -> None:
    terms = (rng.standard_normal((50, 4, 4)) - 1e4).astype(np.float32)
    for sizes in ([50], [1, 49], [7] * 7 + [1]):
        places = measure_places(np.split(terms, np.cumsum(sizes)[:-1]))
        exact = terms.astype(np.float64)
        np.testing.assert_allclose(places.mean, exact.mean(axis=0), rtol=1e-6)
        np.testing.assert_allclose(places.spread, exact.std(axis=0, ddof=1), rtol=1e-5)


def test_a_place_that_never_differs_has_a_spread_all_the_same() -> None:
    places = measure_places([np.ones((5, 2, 2), np.float32)])
    assert (places.spread > 0).all()
    np.testing.assert_array_equal(places.deviations(np.ones((1, 2, 2), np.float32)), 0)


# Files


def test_the_file_of_places_is_read_as_it_was_written(bundle: Bundle, copied: Bundle) -> None:
    written = bundle.read("explain.npy")
    assert write_places(read_places(bundle)) == written
    # Any reader of NumPy's format reads it.
    mean, spread = np.load(io.BytesIO(written))
    np.testing.assert_array_equal(read_places(copied).mean, mean)
    np.testing.assert_array_equal(read_places(copied).spread, spread)


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _huge() -> bytes:
    """An array of 4 TiB, says its header."""
    return _npy(np.zeros((2, 8, 8), np.float32)).replace(b"(2, 8, 8), ", b"(2, 8, 1" + b"0" * 11 + b"), ")[
        :640
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"\0",
        _npy(np.ones((2, 8, 8))),
        _npy(np.ones((2, 4, 8), np.float32)),
        _npy(np.ones((8, 8, 2), np.float32)),
        _npy(np.ones((2, 8, 8), np.float32)) + b"\0",
        _huge(),
        _npy(np.array([{}])),
    ],
    ids=["no array", "float64", "smaller", "other axes", "longer", "huge", "pickled"],
)
def test_a_file_of_places_that_is_no_such_array_is_refused(copied: Bundle, data: bytes) -> None:
    _replace(copied, "explain.npy", data)
    with pytest.raises(
        BundleError, match=r"explain\.npy is no array of float32 \[2, 8, 8\]; export the model"
    ):
        read_places(copied)


@pytest.mark.parametrize(
    "change",
    [lambda x: x.__setitem__((0, 3, 3), np.nan), lambda x: x.__setitem__((1, 3, 3), 0.0)],
    ids=["mean", "spread"],
)
def test_places_that_make_no_sense_are_refused(copied: Bundle, change: Callable[[np.ndarray], None]) -> None:
    array = np.ones((2, 8, 8), np.float32)
    change(array)
    _replace(copied, "explain.npy", _npy(array))
    with pytest.raises(BundleError, match="has a mean that is not finite, or a spread that is not positive"):
        read_places(copied)


@pytest.mark.parametrize("name", ["explain.onnx", "explain.npy"])
def test_a_damaged_or_missing_file_ends_explanations_and_nothing_else(
    copied: Bundle, digits: UInt8Array, name: str
) -> None:
    engine, noise = Engine(copied, CPU), dequantization_noise(0, digits)
    explainer = Explainer(copied, engine)
    whole = (copied.path / name).read_bytes()
    (copied.path / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        explainer.explain(digits, noise)
    (copied.path / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read"):
        explainer.explain(digits, noise)
    assert np.isfinite(engine.forward(digits, noise).log_likelihood).all()
    (copied.path / name).write_bytes(whole)
    assert np.isfinite(explainer.explain(digits, noise)).all()


def test_a_graph_of_other_tensors_is_refused(copied: Bundle, digits: UInt8Array) -> None:
    _replace(copied, "explain.onnx", copied.read("forward.onnx"))
    with pytest.raises(BundleError, match=r"explain\.onnx returns .*, which is not what the manifest says"):
        _deviations(copied, Engine(copied, CPU), digits)


def test_a_graph_whose_terms_do_not_add_up_on_the_canary_is_refused(
    copied: Bundle, digits: UInt8Array
) -> None:
    onnx = pytest.importorskip("onnx", reason="the exporter's part of the environment")
    model = onnx.load_from_string(copied.read("explain.onnx"))
    bias = next(each for each in model.graph.initializer if each.name == "terms.pixels.bias")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + np.float32(0.1), bias.name))
    _replace(copied, "explain.onnx", model.SerializeToString())
    with pytest.raises(
        BundleError, match=r"its canary has a log-likelihood of .* and the terms of explain\.onnx"
    ):
        _deviations(copied, Engine(copied, CPU), digits)


def test_a_bundle_of_an_older_version_scores_and_names_the_command_that_explains(
    digits: UInt8Array,
) -> None:
    bundle = newest_bundle(OLD)
    engine = Engine(bundle, CPU)
    assert np.isfinite(engine.forward(digits, dequantization_noise(0, digits)).log_likelihood).all()
    command = "`glowserve export CHECKPOINT REPOSITORY/digits` writes a version that has it"
    with pytest.raises(MissingFileError, match=rf"^digits version 1 has no explain\.npy, .*{command}"):
        _deviations(bundle, engine, digits)
    with pytest.raises(MissingFileError, match=rf"has no explain\.onnx, .*{command}"):
        engine.explain(digits, dequantization_noise(0, digits))


def test_a_bundle_lists_both_files(bundle: Bundle) -> None:
    assert all(open_bundle(bundle.path).has(name) for name in ("explain.onnx", "explain.npy"))
    assert not bundle.has("calibration.txt")

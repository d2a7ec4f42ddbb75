"""`glowserve calibrate`: the next version of a bundle has the same graphs and another calibration."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import glowserve_export.held_out
import numpy as np
import pytest
from glowserve_export.evaluation import EvaluatedBundle
from glowserve_export.held_out import held_out_of_bundle
from glowserve_training.data import HeldOutImages, load_held_out, open_source

import glowserve
from glowserve.cli import main
from glowserve.images import UInt8Array, to_pil
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.manifest import CALIBRATION
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle, open_bundle
from tests.export.frontends.public_models import public_model, write_public
from tests.service.bundles import without_calibration


def test_a_bundle_without_a_calibration_gets_the_one_of_its_export(
    bundle: Bundle, digits: UInt8Array, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "digits"
    without_calibration(bundle.path, model / "1")
    assert main(["calibrate", str(model), "--data", "digits"]) == 0
    assert "calibrated on 90 images, with a density of 89 others" in capsys.readouterr().out
    renewed = open_bundle(model / "2")
    for name in ("forward.onnx", "reverse.onnx"):
        assert renewed.read(name) == bundle.read(name)
    old, new = bundle_calibration(bundle), bundle_calibration(renewed)
    assert old is not None
    assert new is not None
    np.testing.assert_allclose(new.images.log_prior, old.images.log_prior, rtol=1e-4)
    scores = [
        glowserve.open(path, device="cpu").score(digits, scores=["anomaly_p_value"])
        for path in (bundle.path, model)
    ]
    np.testing.assert_allclose(scores[0].anomaly_p_value, scores[1].anomaly_p_value, atol=3 / 91)


def test_a_folder_that_is_no_version_gets_no_neighbour(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_calibration(bundle.path, tmp_path / "copy")
    assert main(["calibrate", str(tmp_path / "copy"), "--data", "digits"]) == 1
    assert "copy is no folder REPOSITORY/MODEL/VERSION" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["copy"]


def test_data_that_is_not_there_leaves_no_version(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "digits"
    without_calibration(bundle.path, model / "1")
    assert main(["calibrate", str(model), "--data", str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
    assert {path.name for path in model.iterdir()} == {"1"}


# Other images


@pytest.fixture
def model(bundle: Bundle, tmp_path: Path) -> Path:
    """A copy of the model, with version 1."""
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    return tmp_path / "digits"


@pytest.fixture
def other(rng: np.random.Generator, tmp_path: Path) -> str:
    """1,000 images that the model was not trained on."""
    return saved(tmp_path / "other.npz", images=rng.integers(0, 256, (1000, 8, 8), dtype=np.uint8))


@pytest.fixture
def imported(tmp_path: Path) -> Callable[[str], Path]:
    """Exports a checkpoint of a public implementation with images to the model `public`."""
    shape = {"image_shape": [8, 8, 1], "hidden_channels": 8, "K": 2, "L": 1, "n_bits": 4}
    checkpoint, arguments = write_public(tmp_path, public_model("y0ast", **shape))

    def export_with(data: str) -> Path:
        command = ["export", str(checkpoint), str(tmp_path / "public"), "--from", "y0ast"]
        assert main([*command, "--config", str(arguments), "--data", data]) == 0
        return tmp_path / "public"

    return export_with


def saved(path: Path, **arrays: UInt8Array) -> str:
    np.savez(path, **arrays)
    return str(path)


def calibrated(model: Path, data: str, capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], str]:
    """What `glowserve calibrate` prints as JSON, and on standard error."""
    capsys.readouterr()
    assert main(["calibrate", str(model), "--data", data, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def held_out(model: Path, data: str | None) -> tuple[HeldOutImages, list[str]]:
    """The images that `glowserve evaluate` takes, and its warnings."""
    warnings: list[str] = []
    bundle = newest_bundle(model)
    with closing(EvaluatedBundle(bundle, device="cpu")) as opened:
        return held_out_of_bundle(bundle, opened, data, warnings.append)[1], warnings


def contents(*images: UInt8Array) -> set[bytes]:
    return {image.tobytes() for image in np.concatenate(images)}


@contextmanager
def old_rule() -> Iterator[None]:
    """All data is split as for training, as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glowserve_export.held_out, "load_unseen", load_held_out)
        yield


def all_digits() -> UInt8Array:
    return np.stack([np.asarray(image) for image in open_source("digits")["train"]])


def test_all_of_other_images_are_used_and_found_again(
    model: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["calibrate", str(model), "--data", other]) == 0
    printed = capsys.readouterr()
    assert "calibrated on 500 images, with a density of 250 others" in printed.out
    assert "250 more images left for tests" in printed.out
    assert "the results are meaningless if the model was trained on any of these images" in printed.err

    calibration = bundle_calibration(newest_bundle(model))
    assert calibration is not None
    images, warnings = held_out(model, other)
    assert (len(images.test), warnings) == (250, [])
    with closing(EvaluatedBundle(newest_bundle(model), device="cpu")) as opened:
        again = opened.terms(images.calibration, dequantization_noise(DEFAULT_SEED, images.calibration))
        # Order tells what chance cannot; images that have become unreadable since do not count.
        assert opened.is_calibrated_on(images.calibration[5:])
        assert not opened.is_calibrated_on(images.calibration[100:])
        assert not opened.is_calibrated_on(images.calibration[:0])
    np.testing.assert_allclose(again.log_prior, calibration.images.log_prior, rtol=1e-4)
    assert len(contents(images.test, images.calibration, images.validation)) == 1000

    score = glowserve.open(model, device="cpu").score(images.test, scores=["anomalous"])
    assert score.false_alarm_rate == 0.01


def test_a_calibration_by_the_old_rule_is_found_again(
    model: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with old_rule():
        assert calibrated(model, other, capsys)[0]["calibration_images"] == 50

    images, warnings = held_out(model, other)
    assert ([len(images.validation), len(images.calibration), len(images.test)], warnings) == (
        [50, 50, 100],
        [],
    )


def test_it_is_found_where_the_new_rule_has_too_few_images(
    model: Path, rng: np.random.Generator, tmp_path: Path
) -> None:
    train, test = (rng.integers(0, 256, (n, 8, 8), dtype=np.uint8) for n in (200, 40))
    data = saved(tmp_path / "own.npz", train_images=train, test_images=test)
    with old_rule():
        assert main(["calibrate", str(model), "--data", data]) == 0

    images, warnings = held_out(model, data)
    assert (contents(images.test), warnings) == (contents(test[..., None]), [])


def test_data_that_a_bundle_was_calibrated_with_grows(
    model: Path, other: str, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated(model, other, capsys)
    more = rng.integers(0, 256, (200, 8, 8), dtype=np.uint8)
    saved(Path(other), images=np.concatenate((np.load(other)["images"], more)))

    assert len(held_out(model, other)[1]) == 1
    result, warning = calibrated(model, other, capsys)
    assert (result["calibration_images"], result["fitting_images"], result["test_images"]) == (600, 300, 300)
    assert "does not yield the images that the bundle's percentiles were computed from" in warning
    assert held_out(model, other)[1] == []


# The training data


def test_the_held_out_images_of_the_training_data_are_found_at_another_path(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    elsewhere = saved(tmp_path / "moved.npz", images=all_digits())

    result, printed = calibrated(model, elsewhere, capsys)

    assert (result["calibration_images"], result["fitting_images"], result["test_images"]) == (90, 89, 179)
    assert "warning" not in printed


def test_after_other_images_the_training_data_is_split_as_in_training(
    model: Path, other: str, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated(model, other, capsys)
    images, _ = held_out(model, "digits")
    assert (len(images.calibration), len(images.test)) == (90, 179)

    result, warning = calibrated(model, "digits", capsys)
    assert (result["calibration_images"], result["test_images"]) == (90, 179)
    assert "the results are meaningless if the model was trained on any of these images" in warning
    assert list(newest_bundle(model).manifest.calibration.bits_per_dim) == pytest.approx(
        list(bundle.manifest.calibration.bits_per_dim), abs=1e-4
    )


# Imported models


def test_for_an_imported_model_all_images_are_used(
    imported: Callable[[str], Path], other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = imported(other)
    manifest = newest_bundle(model).manifest
    assert (len(manifest.calibration.bits_per_dim), manifest.verification.images) == (500, 128)
    images, warnings = held_out(model, other)
    assert (len(images.validation), len(images.test), warnings) == (250, 250, [])

    capsys.readouterr()
    assert main(["evaluate", str(model), "--data", other, "--device", "cpu", "--json"]) == 0
    printed = capsys.readouterr()
    assert (json.loads(printed.out)["images"], printed.err) == (250, "")


def test_an_import_by_the_old_rule_is_found_again_and_renewed_with_all_images(
    imported: Callable[[str], Path],
    other: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with old_rule():
        model = imported(other)
    images, warnings = held_out(model, other)
    assert (len(images.calibration), len(images.test), warnings) == (50, 100, [])

    result, printed = calibrated(model, other, capsys)
    assert (result["calibration_images"], result["fitting_images"], result["test_images"]) == (500, 250, 250)
    assert "warning" not in printed
    assert len(held_out(model, other)[0].test) == 250


def test_the_folder_of_the_shell_is_no_training_data_of_an_imported_model(
    imported: Callable[[str], Path],
    other: str,
    digits: UInt8Array,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = imported(other)
    (tmp_path / "photos").mkdir()
    for i, image in enumerate(digits):
        to_pil(image).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.chdir(tmp_path / "photos")

    images, (warning,) = held_out(model, ".")

    assert (len(images.validation), len(images.calibration), len(images.test)) == (44, 91, 44)
    assert warning.endswith("the results are meaningless if the model was trained on any of these images")


# Mistakes


@pytest.mark.parametrize(
    ("n", "words"),
    [(1, "has 1 image; to calibrate and to test takes 50 or more"), (49, "has 49 images; ")],
)
def test_too_few_images_leave_no_version(
    n: int, words: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = saved(tmp_path / "few.npz", images=np.zeros((n, 8, 8), np.uint8))
    assert main(["calibrate", str(model), "--data", few]) == 2
    assert words in capsys.readouterr().err
    assert {path.name for path in model.iterdir()} == {"1"}


def test_images_that_cannot_be_read_leave_no_version(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for i in range(60):
        (tmp_path / "photos" / f"{i}.png").write_bytes(b"no picture")
    assert main(["calibrate", str(model), "--data", str(tmp_path / "photos")]) == 2
    assert "none of the 15 can be read" in capsys.readouterr().err
    assert {path.name for path in model.iterdir()} == {"1"}


def test_a_damaged_calibration_is_renewed(
    model: Path, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (model / "1" / CALIBRATION).write_bytes(b"damaged")
    assert calibrated(model, "digits", capsys)[0]["calibration_images"] == 90
    shutil.rmtree(model / "2")
    assert calibrated(model, other, capsys)[0]["calibration_images"] == 500

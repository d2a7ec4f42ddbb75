"""From held-out images to a bundle: to the calibration images nothing is fitted, and nothing else is compared with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.bundle
import numpy as np
import pytest
from glowserve_export.bundle import export
from glowserve_export.held_out import load_held_out_images
from glowserve_export.source import Source
from glowserve_training.data import HeldOutImages

from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.manifest import CALIBRATION
from glowserve.runtime.repository import FORWARD, REVERSE, Bundle
from glowserve.scores import Calibration
from glowserve.scores.calibration import write_calibration
from glowserve.v1 import manifest_pb2


def exported(
    source: Source,
    folder: Path,
    precision: str,
    monkeypatch: pytest.MonkeyPatch,
    *inverted: str,
    split_version: int = 2,
) -> Bundle:
    """The model, exported with some of the held-out images inverted."""

    def load(*arguments: Any) -> HeldOutImages:
        images = load_held_out_images(*arguments)
        images = replace(images, **{part: 255 - getattr(images, part) for part in inverted})
        if split_version == 2:
            return images
        return HeldOutImages(np.concatenate([images.calibration, images.validation]), images.test)

    with monkeypatch.context() as patch:
        patch.setattr(glowserve_export.bundle, "load_held_out_images", load)
        return export(source, folder / "-".join(("digits", *inverted)), precision=precision)


def without_percentiles(bundle: Bundle) -> manifest_pb2.Manifest:
    """The manifest, without what the calibration images alone yield."""
    manifest = manifest_pb2.Manifest()
    manifest.CopyFrom(bundle.manifest)
    for field in ("model", "created_at", "calibration", "files"):
        manifest.ClearField(field)
    manifest.files.extend(file for file in bundle.manifest.files if file.name != CALIBRATION)
    return manifest


def calibration_of(bundle: Bundle) -> Calibration:
    calibration = bundle_calibration(bundle)
    assert calibration is not None
    return calibration


def assert_equal(ours: object, theirs: object) -> None:
    for name, array in vars(ours).items():
        np.testing.assert_array_equal(array, getattr(theirs, name))


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_calibration_images_change_percentiles_alone(
    precision: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(source, tmp_path, precision, monkeypatch)
    other = exported(source, tmp_path, precision, monkeypatch, "calibration")

    assert list(bundle.manifest.calibration.bits_per_dim) != list(other.manifest.calibration.bits_per_dim)
    assert without_percentiles(bundle) == without_percentiles(other)
    ours, theirs = calibration_of(bundle), calibration_of(other)
    assert (ours.images.log_likelihood != theirs.images.log_likelihood).any()
    same = replace(theirs, images=ours.images, complexity=ours.complexity)
    assert write_calibration(ours) == write_calibration(same)  # nothing else was computed from them


def test_to_the_half_of_an_old_splits_validation_images_that_calibrates_nothing_is_fitted(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(source, tmp_path, "int8", monkeypatch, split_version=1)
    other = exported(source, tmp_path, "int8", monkeypatch, "calibration", split_version=1)

    for name in (FORWARD, REVERSE):
        assert bundle.read(name) == other.read(name)
    ours, theirs = calibration_of(bundle), calibration_of(other)
    assert (ours.images.log_prior != theirs.images.log_prior).any()
    same = replace(theirs, images=ours.images, complexity=ours.complexity)
    assert write_calibration(ours) == write_calibration(same)


def test_percentiles_come_from_calibration_images_alone(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(source, tmp_path, "fp32", monkeypatch)
    other = exported(source, tmp_path, "fp32", monkeypatch, "validation")

    np.testing.assert_array_equal(
        bundle.manifest.calibration.bits_per_dim, other.manifest.calibration.bits_per_dim
    )
    assert_equal(calibration_of(bundle).images, calibration_of(other).images)


def test_held_out_images_are_disjoint(source: Source) -> None:
    assert source.data is not None
    images = load_held_out_images(source, source.data, lambda _: None)

    keys = [*images.validation_keys, *images.calibration_keys, *images.test_keys]
    assert source.held_out is not None
    assert source.held_out.record is not None
    known = [image.key for image in source.held_out.record.images()]
    assert len(set(known)) == len(known) == 89 + 90 + 179
    assert set(keys) <= set(known)

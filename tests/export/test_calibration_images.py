"""From held-out images to a bundle: the calibration images yield percentiles alone, and nothing else yields them."""

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
from glowserve.runtime.repository import Bundle
from glowserve.scores.calibration import write_calibration
from glowserve.v1 import manifest_pb2


def exported(
    source: Source, folder: Path, precision: str, monkeypatch: pytest.MonkeyPatch, *inverted: str
) -> Bundle:
    """The model, exported with some of the held-out images inverted."""

    def load(*arguments: Any) -> HeldOutImages:
        images = load_held_out_images(*arguments)
        return replace(images, **{part: 255 - getattr(images, part) for part in inverted})

    with monkeypatch.context() as patch:
        patch.setattr(glowserve_export.bundle, "load_held_out_images", load)
        return export(source, folder / "-".join(("digits", *inverted)), precision=precision)


def without_percentiles(bundle: Bundle) -> manifest_pb2.Manifest:
    manifest = manifest_pb2.Manifest()
    manifest.CopyFrom(bundle.manifest)
    for field in ("model", "created_at", "calibration", "files"):
        manifest.ClearField(field)
    manifest.files.extend(file for file in bundle.manifest.files if file.name != CALIBRATION)
    return manifest


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_calibration_images_change_percentiles_alone(
    precision: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(source, tmp_path, precision, monkeypatch)
    other = exported(source, tmp_path, precision, monkeypatch, "calibration")

    assert list(bundle.manifest.calibration.bits_per_dim) != list(other.manifest.calibration.bits_per_dim)
    assert without_percentiles(bundle) == without_percentiles(other)
    ours, theirs = bundle_calibration(bundle), bundle_calibration(other)
    assert ours is not None
    assert theirs is not None
    assert (ours.images.log_likelihood != theirs.images.log_likelihood).any()
    same = replace(theirs, images=ours.images, complexity=ours.complexity)
    assert write_calibration(ours) == write_calibration(same)  # nothing else was computed from them


def test_percentiles_come_from_calibration_images_alone(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = exported(source, tmp_path, "fp32", monkeypatch)
    other = exported(source, tmp_path, "fp32", monkeypatch, "validation")

    np.testing.assert_array_equal(
        bundle.manifest.calibration.bits_per_dim, other.manifest.calibration.bits_per_dim
    )


def test_held_out_images_are_disjoint(source: Source) -> None:
    assert source.data is not None
    images = load_held_out_images(source, source.data, lambda _: None)

    keys = [*images.validation_keys, *images.calibration_keys, *images.test_keys]
    assert source.held_out is not None
    assert source.held_out.record is not None
    known = [image.key for image in source.held_out.record.images()]
    assert len(set(known)) == len(known) == 89 + 90 + 179
    assert set(keys) <= set(known)

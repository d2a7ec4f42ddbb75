"""Held-out images: those of training, or the user's choice."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glowserve_export.bundle import export
from glowserve_export.errors import DataChangedError, ExportError
from glowserve_export.held_out import held_out_config, load_held_out_images
from glowserve_export.source import Source
from glowserve_training.errors import DataError

from glowserve.images import UInt8Array


@pytest.fixture
def changed(source: Source) -> Source:
    """A model whose training data has changed since, and of which the checkpoint alone is left."""
    assert source.held_out is not None
    return replace(source, held_out=replace(source.held_out, digest="0" * 64, record=None))


def test_training_data_that_has_changed_is_refused(changed: Source, tmp_path: Path) -> None:
    with pytest.raises(DataChangedError, match=r"data 'digits' no longer yields .*--data"):
        export(changed, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_other_images_can_be_given(
    changed: Source, tmp_path: Path, digits: UInt8Array, validation: UInt8Array, calibration: UInt8Array
) -> None:
    data = tmp_path / "elsewhere.npz"
    np.savez(data, images=np.concatenate((validation, calibration, digits)))
    manifest = export(changed, tmp_path / "digits", data=str(data)).manifest
    assert manifest.calibration.data == str(data)
    assert manifest.training.data == "digits"
    assert manifest.verification.images == 89  # a quarter of 358
    assert len(manifest.calibration.bits_per_dim) == 180  # the others, but for another quarter


def test_other_images_are_warned_of(source: Source, tmp_path: Path, digits: UInt8Array) -> None:
    data = str(tmp_path / "others.npz")
    np.savez(data, images=digits[:, ::-1])
    warnings: list[str] = []
    load_held_out_images(source, held_out_config(source, data), warnings.append)
    (warning,) = warnings
    assert warning.startswith(f"warning: {data!r} does not yield the images that were held out in training")


def test_images_must_be_given_where_the_training_data_is_unknown(source: Source) -> None:
    with pytest.raises(ExportError, match="give images that it was not trained on with --data"):
        held_out_config(replace(source, data=None), None)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "label_column is 'digit', and the labels are those of training: give --data, too"),
        ("digits", "label_column is 'digit', and the model has no classes; leave it out"),
    ],
)
def test_a_column_of_labels_that_is_not_read_is_refused(
    source: Source, data: str | None, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        held_out_config(source, data, "digit")

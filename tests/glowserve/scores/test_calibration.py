"""The file of a calibration: what is written is read, and nothing else is."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from glowserve.scores.calibration import MOST_BYTES, Calibration, read_calibration, write_calibration
from tests.glowserve.scores.making import random_parts, standard_density

CHANNELS, LEVELS = 1, 2


@pytest.fixture
def calibration(rng: np.random.Generator) -> Calibration:
    images, fitting = random_parts(rng, 5), random_parts(rng, 4)
    return Calibration(
        images=images,
        complexity=rng.random(5),
        fitting=fitting,
        density=standard_density(fitting),
        codec=np.arange(5),
    )


def changed(data: bytes, **arrays: Any) -> bytes:
    """The file with some arrays replaced, or left out if they are None."""
    with np.load(io.BytesIO(data)) as file:
        kept = {name: array for name, array in (dict(file) | arrays).items() if array is not None}
    out = io.BytesIO()
    np.savez(out, **kept)
    return out.getvalue()


def test_what_is_written_is_read(calibration: Calibration) -> None:
    read = read_calibration(write_calibration(calibration), CHANNELS, LEVELS)
    np.testing.assert_array_equal(read.codec, calibration.codec)
    assert write_calibration(read) == write_calibration(calibration)
    np.testing.assert_array_equal(read.images.channels, calibration.images.channels)
    np.testing.assert_array_equal(read.density.contrasts.whitening, calibration.density.contrasts.whitening)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"format": np.int64(1)}, "its format is 1, and this version of glowserve reads 2"),
        ({"format": None}, "its format is None"),
        ({"codec": None}, "codec is missing"),
        ({"complexity": None}, "complexity is missing"),
        ({"complexity": np.ones(4)}, r"complexity has shape \[4\] and must have \[5\]"),
        ({"codec": np.ones(5)}, "codec is missing, or no list of integers"),
        ({"calibration_log_prior": None}, "calibration_log_prior is missing"),
        ({"calibration_log_prior": np.zeros((5, 3))}, r"has shape \[5, 3\] and must have \[5, 2\]"),
        ({"fitting_log_det": np.zeros((5, 2))}, r"fitting_log_det has shape \[5, 2\] and must have \[4, 2\]"),
        ({"calibration_log_det": np.zeros((5, 2), np.float32)}, "is of type float32 and must be float64"),
        ({"calibration_log_likelihood": np.full(5, np.nan)}, "has a value that is not finite"),
        ({"calibration_log_likelihood": np.zeros(0)}, "it has no calibration images"),
        ({"fitting_channels": np.zeros((4, 19))}, r"has shape \[4, 19\] and must have \[4, 20\]"),
        ({"calibration_contrasts": None}, "calibration_contrasts is missing"),
        ({"density_scale": np.array([1.0, 1, 0, 1])}, "density_scale has a number that is not positive"),
        ({"density_median": np.zeros(3)}, r"density_median has shape \[3\] and must have \[4\]"),
        ({"density_bits": np.zeros(1)}, r"density_bits has shape \[1\] and must have \[\]"),
        ({"density_levels_whitening": np.zeros((4, 4))}, "density_levels_whitening is a singular matrix"),
        ({"density_contrasts_mean": np.zeros(8)}, r"density_contrasts_mean has shape \[8\]"),
        ({"density_channels_whitening": np.full((20, 20), np.inf)}, "has a value that is not finite"),
    ],
)
def test_an_array_that_makes_no_sense_is_named(
    calibration: Calibration, arrays: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_calibration(changed(write_calibration(calibration), **arrays), CHANNELS, LEVELS)


def test_objects_are_not_unpickled(calibration: Calibration) -> None:
    data = changed(write_calibration(calibration), codec=np.array([print], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_calibration(data, CHANNELS, LEVELS)


def test_a_small_file_with_large_arrays_is_not_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codec.npy", bytes(MOST_BYTES + 2**17))
    with pytest.raises(ValueError, match="bytes of arrays and may have"):
        read_calibration(file.getvalue(), CHANNELS, LEVELS)


def test_a_member_that_is_no_array_is_named(calibration: Calibration) -> None:
    file = io.BytesIO(changed(write_calibration(calibration), format=None))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("format", b"1")
    with pytest.raises(ValueError, match="its member 'format' is no array"):
        read_calibration(file.getvalue(), CHANNELS, LEVELS)


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_file_that_is_cut_short_is_refused(calibration: Calibration, cut: int) -> None:
    with pytest.raises(ValueError, match="it is no archive of arrays"):
        read_calibration(write_calibration(calibration)[:cut], CHANNELS, LEVELS)

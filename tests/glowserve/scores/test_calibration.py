"""The file of a calibration: what is written is read, and nothing else is."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from glowserve.scores.calibration import MOST_BYTES, Calibration, read_calibration, write_calibration
from glowserve.scores.density import Mixture
from glowserve.scores.parts import Parts

LEVELS = 2


def parts(rng: np.random.Generator, n: int) -> Parts:
    return Parts(
        log_likelihood=rng.normal(size=n),
        log_prior=rng.normal(size=(n, LEVELS)),
        log_det=rng.normal(size=(n, LEVELS)),
        complexity_bits_per_dim=rng.random(n),
    )


@pytest.fixture
def calibration(rng: np.random.Generator) -> Calibration:
    mixture = Mixture(weights=np.ones(1), means=np.zeros((1, 3)), whitening=np.eye(3)[None])
    return Calibration(images=parts(rng, 5), fitting=parts(rng, 4), density=mixture, codec=np.arange(5))


def changed(data: bytes, **arrays: Any) -> bytes:
    """The file with some arrays replaced, or left out if they are None."""
    with np.load(io.BytesIO(data)) as file:
        kept = {name: array for name, array in (dict(file) | arrays).items() if array is not None}
    out = io.BytesIO()
    np.savez(out, **kept)
    return out.getvalue()


def test_what_is_written_is_read(calibration: Calibration) -> None:
    read = read_calibration(write_calibration(calibration), LEVELS)
    np.testing.assert_array_equal(read.codec, calibration.codec)
    for kind in ("images", "fitting", "density"):
        for name, array in vars(getattr(calibration, kind)).items():
            np.testing.assert_array_equal(getattr(getattr(read, kind), name), array)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"format": np.int64(2)}, "its format is 2, and this version of glowserve reads 1"),
        ({"format": None}, "its format is None"),
        ({"codec": None}, "codec is missing"),
        ({"codec": np.ones(5)}, "codec is missing, or no list of integers"),
        ({"calibration_log_prior": None}, "calibration_log_prior is missing"),
        ({"calibration_log_prior": np.zeros((5, 3))}, r"has shape \[5, 3\] and must have \[5, 2\]"),
        ({"fitting_log_det": np.zeros((5, 2))}, r"fitting_log_det has shape \[5, 2\] and must have \[4, 2\]"),
        ({"calibration_log_det": np.zeros((5, 2), np.float32)}, "is of type float32 and must be float64"),
        ({"calibration_log_likelihood": np.full(5, np.nan)}, "has a value that is not finite"),
        ({"calibration_log_likelihood": np.zeros(0)}, "it has no calibration images"),
        ({"density_weights": np.array([-1.0])}, "are not positive numbers whose sum is 1"),
        ({"density_weights": np.zeros(0)}, "density_means has shape"),
        ({"density_whitening": np.zeros((1, 3, 3))}, "has a singular matrix"),
        ({"density_means": np.zeros((1, 4))}, r"density_means has shape \[1, 4\]"),
    ],
)
def test_an_array_that_makes_no_sense_is_named(
    calibration: Calibration, arrays: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        read_calibration(changed(write_calibration(calibration), **arrays), LEVELS)


def test_objects_are_not_unpickled(calibration: Calibration) -> None:
    data = changed(write_calibration(calibration), codec=np.array([print], object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_calibration(data, LEVELS)


def test_a_small_file_with_large_arrays_is_not_unpacked() -> None:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("codec.npy", bytes(MOST_BYTES + 2**17))
    with pytest.raises(ValueError, match="bytes of arrays and may have"):
        read_calibration(file.getvalue(), LEVELS)


def test_a_member_that_is_no_array_is_named(calibration: Calibration) -> None:
    file = io.BytesIO(changed(write_calibration(calibration), format=None))
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("format", b"1")
    with pytest.raises(ValueError, match="its member 'format' is no array"):
        read_calibration(file.getvalue(), LEVELS)


@pytest.mark.parametrize("cut", [0, 10, 200, -1])
def test_a_file_that_is_cut_short_is_refused(calibration: Calibration, cut: int) -> None:
    with pytest.raises(ValueError, match="it is no archive of arrays"):
        read_calibration(write_calibration(calibration)[:cut], LEVELS)

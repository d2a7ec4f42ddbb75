"""The attributes of a bundle: their file, the path of a latent along them, and names that are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from glowserve.arrays import write_arrays
from glowserve.runtime.attributes import (
    Attributes,
    bundle_attributes,
    check_attributes,
    write_attributes,
)
from glowserve.runtime.errors import BundleError, InvalidRequestError, MissingFileError
from glowserve.runtime.repository import ATTRIBUTES, Bundle, fingerprint, open_bundle
from tests.service.bundles import with_attributes, write_file

DIRECTIONS = np.arange(3 * 64, dtype=np.float32).reshape(3, 64)
THREE = Attributes(("thick", "slanted", "né-模型"), DIRECTIONS, np.array([0.9, 0.5, 0], np.float32))


@pytest.fixture
def version(bundle: Bundle, tmp_path: Path) -> Path:
    """A bundle with three attributes."""
    with_attributes(bundle.path, tmp_path / "1", THREE)
    return tmp_path / "1"


def test_attributes_are_read_as_they_were_written(version: Path) -> None:
    found = bundle_attributes(open_bundle(version))
    assert found.names == THREE.names
    np.testing.assert_array_equal(found.directions, THREE.directions)
    np.testing.assert_array_equal(found.separated, THREE.separated)


def test_a_bundle_without_the_file_has_none(bundle: Bundle) -> None:
    found = bundle_attributes(bundle)
    assert (found.names, found.directions.shape) == ((), (0, 64))


def test_a_changed_file_is_refused_and_changes_the_fingerprint(version: Path) -> None:
    before = fingerprint(version)
    (version / ATTRIBUTES).write_bytes(write_attributes(THREE)[:-1] + b"?")
    assert fingerprint(version) != before
    with pytest.raises(BundleError, match=r"attributes\.npz is not the file that was exported"):
        bundle_attributes(open_bundle(version))


GOOD = {"names": np.array(THREE.names), "directions": DIRECTIONS, "separated": THREE.separated}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"names": np.array(["a", "a", "b"])}, r"names has shape \[3\]; it must be 1 to 256 different names"),
        ({"names": np.array("a")}, r"names has shape \[\]"),
        ({"names": np.array([f"{i}" for i in range(257)])}, r"names has shape \[257\]"),
        ({"names": np.array(["a", "", "b"])}, "a name is empty"),
        ({"names": np.array(["a", "b" * 129, "c"])}, "more than 128 characters"),
        ({"names": np.arange(3)}, "its array 'names' is missing, or of another type"),
        ({"directions": DIRECTIONS[:, 1:]}, r"directions is float32 \[3, 63\]; it must be float32 \[3, 64\]"),
        ({"directions": DIRECTIONS.astype(np.float64)}, r"directions is float64 \[3, 64\]"),
        ({"directions": np.full_like(DIRECTIONS, np.inf)}, "and finite"),
        ({"separated": np.array([0, 0.5, 1.1], np.float32)}, "3] values from 0 to 1"),
        ({"separated": np.array([0, 0.5, np.nan], np.float32)}, "3] values from 0 to 1"),
        ({"separated": np.array([0.5], np.float32)}, r"separated has shape \[1\]"),
        (None, "it is no archive of arrays"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused_with_the_command_that_renews_it(
    version: Path, arrays: dict[str, np.ndarray] | None, words: str
) -> None:
    write_file(version, ATTRIBUTES, b"no archive" if arrays is None else write_arrays(GOOD | arrays))
    with pytest.raises(BundleError, match=words) as caught:
        bundle_attributes(open_bundle(version))
    assert f"`glowserve attributes {version} --data LABELLED`" in str(caught.value)


def test_a_latent_moves_by_each_strength_times_the_sum_of_the_directions() -> None:
    latent = np.linspace(-1, 1, 64, dtype=np.float32)
    path = THREE.path(latent, ["thick", "né-模型"], [0, 1, -0.5])
    both = DIRECTIONS[0] + DIRECTIONS[2]
    np.testing.assert_allclose(path, latent + np.array([[0], [1], [-0.5]]) * both, rtol=1e-6)
    assert path.dtype == np.float32
    np.testing.assert_array_equal(path[0], latent)


def test_a_strength_beyond_float32_makes_a_latent_that_is_not_finite() -> None:
    path = THREE.path(np.zeros(64, np.float32), ["slanted"], [1e38, 1])
    assert np.isfinite(path).all(axis=1).tolist() == [False, True]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "attributes is empty; the attributes are thick, slanted, né-模型"),
        (["thick", "blond"], r"attributes\[1\] is 'blond'; the attributes are thick, slanted, né-模型"),
        (["thick", "thick"], r"attributes\[1\] is 'thick' once more; name each attribute once"),
        (["x" * 10_000], r"attributes\[0\] is 'x{128}'; the attributes are"),
    ],
)
def test_a_request_for_other_attributes_is_refused_with_those_there_are(
    bundle: Bundle, names: list[str], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        check_attributes(names, THREE, bundle)
    check_attributes(["né-模型", "thick"], THREE, bundle)


def test_a_message_lists_twenty_attributes_at_most(bundle: Bundle) -> None:
    names = tuple(f"a{i}" for i in range(256))
    many = Attributes(names, np.zeros((256, 64), np.float32), np.ones(256, np.float32))
    with pytest.raises(InvalidRequestError, match=r"are a0, a1, .*, a19, and 236 more$"):
        check_attributes(["b"], many, bundle)


def test_a_model_without_attributes_names_the_command_that_computes_them(bundle: Bundle) -> None:
    with pytest.raises(
        MissingFileError, match=r"`glowserve attributes REPOSITORY/digits --data LABELLED` writes"
    ):
        check_attributes(["thick"], bundle_attributes(bundle), bundle)

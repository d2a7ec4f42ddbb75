"""Finding and opening bundles. Every test that changes a bundle has its own copy."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from glowserve.images import Preparation
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import manifest_checksum
from glowserve.runtime.repository import (
    Bundle,
    fingerprint,
    list_repository,
    newest_bundle,
    open_bundle,
)

Manifest = dict[str, Any]


@pytest.fixture
def copied(repository: Path, tmp_path: Path) -> Path:
    """A copy of the repository."""
    shutil.copytree(repository, tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture
def version(copied: Path) -> Path:
    """The bundle in the copy."""
    return copied / "digits" / "1"


def _edit(version: Path, change: Callable[[Manifest], object]) -> None:
    """Changes a manifest, and updates its checksum."""
    manifest = json.loads((version / "manifest.json").read_text())
    change(manifest)
    _write(version, json.dumps(manifest).encode())


def _write(version: Path, manifest: bytes) -> None:
    (version / "manifest.json").write_bytes(manifest)
    (version / "manifest.json.sha256").write_bytes(manifest_checksum(manifest))


def _add_version(model: Path, number: str) -> None:
    shutil.copytree(model / "1", model / number)


# Opening


def test_a_bundle_has_the_shape_and_preparation_of_its_images(version: Path) -> None:
    bundle = open_bundle(version)
    assert bundle.path == version
    assert bundle.shape == (8, 8, 1)
    assert bundle.preparation == Preparation()
    assert bundle.manifest.model == "digits"


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
def test_the_content_of_a_graph_is_read(version: Path, name: str) -> None:
    assert open_bundle(version).read(name) == (version / name).read_bytes()


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
@pytest.mark.parametrize("place", [0, 0.5, 1])
def test_a_graph_with_one_flipped_bit_is_refused_by_name(version: Path, name: str, place: float) -> None:
    data = bytearray((version / name).read_bytes())
    data[int(place * (len(data) - 1))] ^= 0x10
    (version / name).write_bytes(data)
    bundle = open_bundle(version)
    with pytest.raises(BundleError, match=rf"{name} is not the file that was exported .*SHA-256"):
        bundle.read(name)
    other = {"forward.onnx": "reverse.onnx", "reverse.onnx": "forward.onnx"}[name]
    assert bundle.read(other)


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
def test_a_truncated_graph_is_refused_by_name(version: Path, name: str) -> None:
    (version / name).write_bytes((version / name).read_bytes()[:-1])
    with pytest.raises(BundleError, match=f"{name} is not the file that was exported"):
        open_bundle(version).read(name)


def test_swapped_graphs_are_refused(version: Path) -> None:
    (version / "forward.onnx").rename(version / "other")
    (version / "reverse.onnx").rename(version / "forward.onnx")
    (version / "other").rename(version / "reverse.onnx")
    for name in ("forward.onnx", "reverse.onnx"):
        with pytest.raises(BundleError, match=f"{name} is not the file"):
            open_bundle(version).read(name)


@pytest.mark.parametrize("name", ["forward.onnx", "reverse.onnx"])
def test_a_missing_graph_is_refused_by_name(version: Path, name: str) -> None:
    (version / name).unlink()
    with pytest.raises(BundleError, match=f"{name} cannot be read: No such file or directory"):
        open_bundle(version).read(name)


def test_a_file_that_the_manifest_does_not_mention_is_refused(version: Path) -> None:
    _edit(version, lambda manifest: manifest["files"].pop(0))
    with pytest.raises(BundleError, match=r"the manifest does not mention forward\.onnx"):
        open_bundle(version).read("forward.onnx")


# The manifest


def test_a_missing_manifest_is_refused_by_name(version: Path) -> None:
    (version / "manifest.json").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json cannot be read: No such file or directory"):
        open_bundle(version)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256"])
def test_a_manifest_or_checksum_with_a_flipped_bit_is_refused(version: Path, name: str) -> None:
    path = version / name
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        flipped = bytearray(data)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(flipped)
        with pytest.raises(BundleError, match=r"manifest\.json is not the file that was exported"):
            open_bundle(version)


def test_a_missing_checksum_is_refused_by_name(version: Path) -> None:
    (version / "manifest.json.sha256").unlink()
    with pytest.raises(BundleError, match=r"manifest\.json\.sha256 cannot be read: No such file"):
        open_bundle(version)


def test_sha256sum_can_check_the_checksum(version: Path) -> None:
    command = ["sha256sum", "--check", "--strict", "manifest.json.sha256"]
    assert subprocess.run(command, cwd=version, capture_output=True, check=True).stdout
    (version / "manifest.json").write_text("{}")
    assert subprocess.run(command, cwd=version, capture_output=True, check=False).returncode == 1


def test_a_manifest_with_any_changed_byte_is_read_or_refused(version: Path) -> None:
    data = (version / "manifest.json").read_bytes()
    places, read = range(0, len(data), 11), 0
    for place in places:
        changed = bytearray(data)
        changed[place] ^= 0x01  # usually another letter or digit
        _write(version, bytes(changed))
        with contextlib.suppress(BundleError):
            open_bundle(version)
            read += 1
    assert 0 < read < len(places)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"{}", b"\xff\xfe", b'{"format_version": 1, "unknown": 2}', b"[" * 100_000],
)
def test_a_file_that_is_not_a_manifest_is_refused(version: Path, content: bytes) -> None:
    _write(version, content)
    with pytest.raises(BundleError, match=str(version)):
        open_bundle(version)


@pytest.mark.parametrize("number", [0, 5])
def test_another_format_is_refused_with_both_versions(version: Path, number: int) -> None:
    _edit(version, lambda manifest: manifest.update(format_version=number))
    with pytest.raises(BundleError, match=f"its format is version {number} and this service reads 1 to 4"):
        open_bundle(version)


@pytest.mark.parametrize(
    "image",
    [
        {"height": 0},
        {"width": 16},
        {"channels": 5, "latent_size": 320},
        {"height": 1, "width": 16_384, "latent_size": 16_384},
        {"n_bits": 0},
        {"n_bits": 9},
        {"latent_size": 63},
    ],
)
def test_an_image_of_an_impossible_shape_is_refused(version: Path, image: Manifest) -> None:
    _edit(version, lambda manifest: manifest["image"].update(image))
    with pytest.raises(BundleError, match=r"the manifest's image.* (must|may|values)"):
        open_bundle(version)


def test_randomness_of_an_unknown_version_is_refused(version: Path) -> None:
    for randomness in ("RANDOMNESS_VERSION_UNSPECIFIED", 7):
        _edit(version, lambda manifest, value=randomness: manifest.update(randomness=value))
        with pytest.raises(
            BundleError, match=r"its randomness is version \d and this service knows 1 and 2; "
        ):
            open_bundle(version)


def test_a_bundle_without_calibration_is_refused(version: Path) -> None:
    _edit(version, lambda manifest: manifest["calibration"].pop("bits_per_dim"))
    with pytest.raises(BundleError, match=r"calibration\.bits_per_dim is empty; export the model again"):
        open_bundle(version)


def test_an_unknown_preparation_is_refused(version: Path) -> None:
    _edit(version, lambda manifest: manifest["preparation"].update(filter="sharpest"))
    with pytest.raises(BundleError, match=r"preparation: .*sharpest"):
        open_bundle(version)


# Finding


def test_the_newest_version_is_the_highest_number(copied: Path) -> None:
    model = copied / "digits"
    _add_version(model, "9")
    _add_version(model, "10")
    assert list_repository(copied).versions == {"digits": [1, 9, 10]}
    assert newest_bundle(model).path == model / "10"


def test_folders_that_are_not_versions_are_ignored(copied: Path) -> None:
    model = copied / "digits"
    for name in (".staging-9x", "latest", "2.old", "02", "0", "-3", "3 ", "٣", "4e2"):
        _add_version(model, name)
    (model / "5").write_text("a file")
    assert list_repository(copied).versions == {"digits": [1]}
    assert newest_bundle(model).path == model / "1"


def test_folders_that_are_not_models_are_ignored(copied: Path) -> None:
    shutil.copytree(copied / "digits", copied / "faces")
    for name in (".hidden", "-flag", "two words", "lost+found"):
        shutil.copytree(copied / "digits", copied / name)
    (copied / "empty").mkdir()
    (copied / "README.md").write_text("a file")
    assert list_repository(copied).versions == {"digits": [1], "faces": [1]}


def test_a_version_folder_can_be_opened(copied: Path) -> None:
    model = copied / "digits"
    _add_version(model, "2")
    assert newest_bundle(model / "1").path == model / "1"


def test_a_missing_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"models: there is no such folder; `glowserve export` makes one"):
        list_repository(tmp_path / "models")


def test_a_repository_without_bundles_has_no_models(tmp_path: Path) -> None:
    (tmp_path / "digits" / ".staging-1").mkdir(parents=True)
    assert list_repository(tmp_path).versions == {}


@pytest.mark.parametrize(
    "name",
    ["manifest.json", "manifest.json.sha256", "forward.onnx", "reverse.onnx", "explain.onnx", "explain.npy"],
)
def test_a_fingerprint_changes_with_each_file_of_a_bundle_and_with_no_other(version: Path, name: str) -> None:
    seen = [fingerprint(version)]
    (version / "notes.txt").write_text("ignored")
    assert fingerprint(version) == seen[0]
    data = (version / name).read_bytes()
    (version / name).write_bytes(bytes(len(data)))  # of the same length
    seen.append(fingerprint(version))
    (version / name).unlink()
    seen.append(fingerprint(version))
    (version / name).write_bytes(data)
    seen.append(fingerprint(version))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("name", ["digits", "missing"])
def test_a_model_without_bundles_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "digits").mkdir()
    with pytest.raises(
        BundleError, match=rf"model .*{name}: there is no bundle VERSION/manifest\.json in it"
    ):
        newest_bundle(tmp_path / name)


def test_a_damaged_newest_version_is_refused_and_not_skipped(copied: Path) -> None:
    (copied / "digits" / "2").mkdir()
    _write(copied / "digits" / "2", b"{")
    with pytest.raises(BundleError, match=r"digits/2: manifest\.json is not a manifest"):
        newest_bundle(copied / "digits")


def test_a_folder_without_a_manifest_is_not_a_version(copied: Path) -> None:
    (copied / "digits" / "2").mkdir()
    assert newest_bundle(copied / "digits").manifest.version == 1


def test_a_copied_bundle_has_the_names_of_its_folders(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "copy" / "7")
    copied = open_bundle(tmp_path / "copy" / "7")
    assert (copied.manifest.model, copied.manifest.version) == ("copy", 7)


def test_a_calibration_that_is_not_finite_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    version = tmp_path / "digits" / "1"
    _edit(version, lambda manifest: manifest["calibration"]["bits_per_dim"].append("NaN"))
    with pytest.raises(BundleError, match="bits_per_dim has a value that is not finite"):
        open_bundle(version)

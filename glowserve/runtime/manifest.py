"""Reads a bundle's manifest, and refuses values that make no sense. What each field means: manifest.proto."""

from __future__ import annotations

import errno
import hashlib
import math
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf import json_format
from google.protobuf.message import Message

from glowserve.image_size import MAX_SIDE, MAX_VALUES
from glowserve.images import MODES
from glowserve.messages import preparation_of
from glowserve.runtime.errors import BundleError
from glowserve.runtime.graphs import MAX_GRAPH_BYTES
from glowserve.runtime.randomness import ATTEMPTS
from glowserve.runtime.regular_files import read_regular_file
from glowserve.v1 import manifest_pb2

MANIFEST = "manifest.json"
CHECKSUM = "manifest.json.sha256"
FLOW = "flow.json"
CALIBRATION = "calibration.npz"
CLASS_CALIBRATION = "class_calibration.npz"
"""The same of images of which each is scored given its class."""
FORMAT_VERSIONS = (1, 2, 3, 4)
FORMAT_2_FIELDS = ("preprocessing", "coupling_scale", "checkerboards")
"""The fields of Flow that format 1 does not have; they are in the file FLOW."""
YOUNGER_FIELDS = (*FORMAT_2_FIELDS, "classes")
"""All fields of Flow that are in the file FLOW."""
MOST_CLASSES = 1000
PRECISIONS = ("fp32", "fp16", "int8")

MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
VERSION = re.compile(r"[1-9][0-9]{0,17}")

# The canary of the largest image, in Base64, and the scores of half a million held-out images.
_MAX_MANIFEST_BYTES = 2**24
_MAX_TEXT = 4096
_MAX_FILES = 16
_SHARES_ROUNDED = 1e-6
_SHA256 = re.compile(r"[0-9a-f]{64}")
# An empty word means the first: the field is younger than the bundle.
_WORDS = {
    "coupling": ("affine", "additive", "spline"),
    "dequantization": ("", "uniform", "variational"),
    "preprocessing": ("", "centre", "logit"),
    "coupling_scale": ("", "sigmoid", "tanh"),
    "precision": ("", *PRECISIONS),
}


_M = TypeVar("_M", bound=Message)


def read_manifest(path: Path) -> manifest_pb2.Manifest:
    """Reads and checks the manifest in a VERSION folder.

    Raises:
        BundleError: there is none, it is damaged, has a value that makes no sense, or is of an unknown format.
    """
    data, checksum = (_read(path, name) for name in (MANIFEST, CHECKSUM))
    if checksum != manifest_checksum(data):
        raise BundleError(
            f"bundle {path}: {MANIFEST} is not the file that was exported (its SHA-256 is not the one in {CHECKSUM}); "
            "export the model again"
        )
    manifest = _parse(path, MANIFEST, data, manifest_pb2.Manifest())
    _check_format(path, manifest)
    _check_randomness(path, manifest)
    if manifest.format_version >= 2:
        data = read_listed_file(path, manifest, FLOW, most=_MAX_MANIFEST_BYTES)
        manifest.flow.MergeFrom(_parse(path, FLOW, data, manifest_pb2.Flow()))
    for wrong in _senseless(manifest):
        raise BundleError(f"bundle {path}: the manifest's {wrong}; export the model again")
    return manifest


def read_listed_file(
    path: Path, manifest: manifest_pb2.Manifest, name: str, *, most: int = MAX_GRAPH_BYTES
) -> bytes:
    """The content of a file that the manifest lists, of at most that many bytes.

    Raises:
        BundleError: the file is not listed, missing or too large, or it is not the file that the manifest describes.
    """
    entry = next((file for file in manifest.files if file.name == name), None)
    if entry is None:
        raise BundleError(f"bundle {path}: the manifest does not mention {name}; export the model again")
    try:
        data = read_regular_file(path / name, min(entry.size, most))
    except OSError as error:
        if error.errno == errno.EFBIG:
            raise _changed(path, name, str(error.strerror)) from None
        raise BundleError(f"bundle {path}: {name} cannot be read: {error.strerror}") from error
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise _changed(path, name, "its SHA-256 differs")
    return data


def _changed(path: Path, name: str, how: str) -> BundleError:
    return BundleError(
        f"bundle {path}: {name} is not the file that was exported ({how}); export the model again"
    )


def manifest_checksum(manifest: bytes) -> bytes:
    """The content of the file CHECKSUM for the content of the file MANIFEST, in the format of sha256sum."""
    return f"{hashlib.sha256(manifest).hexdigest()}  {MANIFEST}\n".encode()


def _parse(path: Path, name: str, data: bytes, message: _M) -> _M:
    try:
        return json_format.Parse(data, message)
    except Exception as error:  # deep nesting, huge numbers and odd Unicode raise errors of many types
        if name == MANIFEST:
            _check_format_of_unreadable(path, data)
        kind = message.DESCRIPTOR.name.lower()
        raise BundleError(
            f"bundle {path}: {name} is not a {kind}: {_one_line(error)}; export the model again"
        ) from None


def _check_format_of_unreadable(path: Path, data: bytes) -> None:
    """Raises BundleError if a manifest has a younger format, which may have fields that this version does not know."""
    manifest = manifest_pb2.Manifest()
    with suppress(Exception):
        json_format.Parse(data, manifest, ignore_unknown_fields=True)
    if manifest.format_version:
        _check_format(path, manifest)


def _check_format(path: Path, manifest: manifest_pb2.Manifest) -> None:
    if manifest.format_version not in FORMAT_VERSIONS:
        raise BundleError(
            f"bundle {path}: its format is version {manifest.format_version} and this service reads "
            f"{FORMAT_VERSIONS[0]} to {FORMAT_VERSIONS[-1]}; export the model with this version of glowserve"
        )


def _check_randomness(path: Path, manifest: manifest_pb2.Manifest) -> None:
    if manifest.randomness not in ATTEMPTS:
        raise BundleError(
            f"bundle {path}: its randomness is version {manifest.randomness} and this service knows "
            f"{' and '.join(map(str, ATTEMPTS))}; export the model with this version of glowserve"
        )


def _senseless(manifest: manifest_pb2.Manifest) -> Iterator[str]:
    if not MODEL_NAME.fullmatch(manifest.model):
        yield f"model is {manifest.model[:200]!r}, which is not a model's name"
    if not VERSION.fullmatch(str(manifest.version)):
        yield f"version is {manifest.version} and must lie in 1 to 999999999999999999"
    yield from _senseless_image(manifest.image)
    yield from _senseless_preparation(manifest.preparation)
    yield from _senseless_flow(manifest.flow, manifest.image)
    if manifest.format_version == 1:
        for field in FORMAT_2_FIELDS:
            if value := getattr(manifest.flow, field):
                yield f"flow.{field} is {value!r:.200}, and format 1 has no such field"
    yield from _senseless_classes(manifest)
    if manifest.format_version < 3 and (value := format_3_value(manifest)):
        yield f"{value} belongs to format 3, and its format is {manifest.format_version}"
    if not math.isfinite(manifest.log_det_constant):
        yield f"log_det_constant is {manifest.log_det_constant} and must be finite"
    yield from _senseless_files(manifest.files)
    yield from _senseless_calibration(manifest.calibration.bits_per_dim)
    yield from _senseless_canary(manifest.canary, manifest.image)
    yield from _long_texts(manifest, "")


def format_3_value(manifest: manifest_pb2.Manifest) -> str:
    """A value that an older service would misread, as "FIELD, which is VALUE,"; "" if there is none."""
    image, preparation = manifest.image, manifest.preparation
    if image.channels in (2, 4):
        return f"image.channels, which is {image.channels},"
    if preparation.fit not in ("", "crop"):
        return f"preparation.fit, which is {preparation.fit[:200]!r},"
    if preparation.bits_used not in (0, 16):
        return f"preparation.bits_used, which is {preparation.bits_used},"
    return ""


def _senseless_image(image: manifest_pb2.ImageSpec) -> Iterator[str]:
    size = image.height * image.width * image.channels
    if image.channels not in MODES:
        yield f"image.channels is {image.channels} and must be 1 to 4"
    if max(image.height, image.width) > MAX_SIDE:
        yield f"image has {image.height} x {image.width} pixels, and a side may have {MAX_SIDE}"
    if not 1 <= size <= MAX_VALUES:
        yield f"image has {image.height} x {image.width} x {image.channels} values and may have 1 to {MAX_VALUES}"
    if not 1 <= image.n_bits <= 8:
        yield f"image.n_bits is {image.n_bits} and must lie in 1 to 8"
    if image.latent_size != size:
        yield f"image.latent_size is {image.latent_size} and the image has {size} values"


def _senseless_preparation(preparation: manifest_pb2.Preparation) -> Iterator[str]:
    try:
        preparation_of(preparation)
    except ValueError as error:
        yield f"preparation: {_one_line(error)}"


def _senseless_flow(flow: manifest_pb2.Flow, image: manifest_pb2.ImageSpec) -> Iterator[str]:
    for field, words in _WORDS.items():
        if (word := getattr(flow, field)) not in words:
            yield f"flow.{field} is {word[:200]!r} and must be one of {', '.join(filter(None, words))}"
    # Each level halves the height and the width.
    most = min(image.height, image.width).bit_length()
    if not 1 <= flow.levels <= most:
        yield f"flow.levels is {flow.levels} and must lie in 1 to {most}"


def _senseless_classes(manifest: manifest_pb2.Manifest) -> Iterator[str]:
    classes = manifest.flow.classes
    if not classes:
        return
    if manifest.format_version < 4:
        yield f"flow.classes has {len(classes)} classes, and format {manifest.format_version} has none"
    if not 2 <= len(classes) <= MOST_CLASSES:
        yield f"flow.classes has {len(classes)} classes and must have 2 to {MOST_CLASSES}"
    names = [each.name for each in classes]
    if "" in names or len(set(names)) < len(names):
        yield "flow.classes has a name twice, or an empty one"
    shares = [each.share for each in classes]
    if not (all(share > 0 for share in shares) and abs(sum(shares) - 1) < _SHARES_ROUNDED):
        yield f"flow.classes has shares whose sum is {sum(shares):g}; each must be above 0, and the sum 1"


def _senseless_files(files: Collection[manifest_pb2.File]) -> Iterator[str]:
    if len(files) > _MAX_FILES:
        yield f"files lists {len(files)} files and may list {_MAX_FILES}"
    for file in files:
        name = file.name[:200]
        if Path(name).name != name:
            yield f"files: {name!r} is not the name of a file"
        if [other.name for other in files].count(file.name) > 1:
            yield f"files name {name!r} twice"
        if not _SHA256.fullmatch(file.sha256):
            yield f"files: the sha256 of {name!r} is {file.sha256[:200]!r} and must be 64 hexadecimal digits"
        if not 1 <= file.size <= MAX_GRAPH_BYTES:
            yield f"files: the size of {name!r} is {file.size} and must lie in 1 to {MAX_GRAPH_BYTES} bytes"


def _senseless_calibration(bits: Collection[float]) -> Iterator[str]:
    if not bits:
        yield "calibration.bits_per_dim is empty"
    if not all(map(math.isfinite, bits)):
        yield "calibration.bits_per_dim has a value that is not finite"
    if list(bits) != sorted(bits):
        yield "calibration.bits_per_dim is not in ascending order"


def _senseless_canary(canary: manifest_pb2.Canary, image: manifest_pb2.ImageSpec) -> Iterator[str]:
    if len(canary.image) != image.latent_size:
        yield f"canary.image has {len(canary.image)} bytes and must have {image.latent_size}"
    if not 0 <= canary.temperature <= 1:
        yield f"canary.temperature is {canary.temperature} and must lie in 0 to 1"
    if not math.isfinite(canary.log_likelihood):
        yield f"canary.log_likelihood is {canary.log_likelihood} and must be finite"


def _long_texts(message: Message, place: str) -> Iterator[str]:
    """The texts of a message and of those in it that are longer than any that the exporter writes."""
    for field, value in message.ListFields():
        for each in _parts(value):
            if isinstance(each, Message):
                yield from _long_texts(each, f"{place}{field.name}.")
            elif isinstance(each, str) and len(each) > _MAX_TEXT:
                yield f"{place}{field.name} has {len(each)} characters and may have {_MAX_TEXT}"


def _parts(value: Any) -> Iterator[Any]:
    """A single value, the values of a list, or the keys and values of a map."""
    if isinstance(value, str | bytes | Message) or not hasattr(value, "__iter__"):
        yield value
        return
    yield from value
    if hasattr(value, "values"):
        yield from value.values()


def _read(path: Path, name: str) -> bytes:
    try:
        return read_regular_file(path / name, _MAX_MANIFEST_BYTES)
    except OSError as error:
        raise BundleError(f"bundle {path}: {name} cannot be read: {error.strerror}") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

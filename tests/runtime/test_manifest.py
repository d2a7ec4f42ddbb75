"""Manifests whose checksum is right, and whose values make no sense."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import manifest_checksum, read_manifest
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.v1.manifest_pb2 import Manifest
from glowserve.verification import steps_table, verification_table

SENSELESS: dict[int, list[Any]] = {
    FieldDescriptor.CPPTYPE_UINT32: [0, 1, 2, 3, 5, 9, 256, 2**16, 2**32 - 1],
    FieldDescriptor.CPPTYPE_UINT64: [0, 1, 2**53 + 1, 2**64 - 1],
    FieldDescriptor.CPPTYPE_INT64: [-1, 0, 2**31],
    FieldDescriptor.CPPTYPE_INT32: [-1, 0, 1],
    FieldDescriptor.CPPTYPE_DOUBLE: [0.0, -1.0, 1e-300, 1e300, math.inf, -math.inf, math.nan],
    FieldDescriptor.CPPTYPE_BOOL: [False, True],
    FieldDescriptor.CPPTYPE_ENUM: [0, 2, 2**31 - 1],
    FieldDescriptor.CPPTYPE_STRING: ["\0", "../../etc", "fp64", "x" * 100_000, "ä\nb"],
}
BYTES = [b"", b"\0", b"\xff" * 64, b"x" * 100_000]


@pytest.fixture
def version(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    return tmp_path / "digits" / "1"


def write(version: Path, data: bytes) -> None:
    (version / "manifest.json").write_bytes(data)
    (version / "manifest.json.sha256").write_bytes(manifest_checksum(data))


def fields(message: Any, path: str = "") -> Iterator[tuple[str, Any, FieldDescriptor]]:
    """The path, the message and the descriptor of every field of a message and of those in it, the first of a list."""
    for field in message.DESCRIPTOR.fields:
        yield f"{path}{field.name}", message, field
        value = getattr(message, field.name)
        if field.message_type and field.message_type.file.name == Manifest.DESCRIPTOR.file.name:
            inner = value if isinstance(value, Message) else next(iter(value), None)
            if isinstance(inner, Message):
                yield from fields(inner, f"{path}{field.name}.")


def senseless(message: Any, field: FieldDescriptor) -> Iterator[None]:
    """Gives a field one senseless value after the other."""
    values = BYTES if field.type == FieldDescriptor.TYPE_BYTES else SENSELESS.get(field.cpp_type, [])
    whole = message.__class__.FromString(message.SerializeToString())
    message.ClearField(field.name)
    yield
    for value in values:
        if field.is_repeated:
            getattr(message, field.name)[:] = [value]
            yield
            getattr(message, field.name)[:] = [2.0, value, 1.0]
        else:
            setattr(message, field.name, value)
        yield
    message.CopyFrom(whole)


EXAMPLE = Path(__file__).parents[1] / "data" / "0.1.0" / "models" / "digits" / "1" / "manifest.json"
PATHS = [path for path, _, _ in fields(json_format.Parse(EXAMPLE.read_text(), Manifest()))]


@pytest.mark.parametrize("path", PATHS)
def test_a_bundle_with_a_senseless_value_is_refused_or_works(
    version: Path, bundle: Bundle, digits: UInt8Array, path: str
) -> None:
    manifest = Manifest.FromString(bundle.manifest.SerializeToString())
    message, field = next((message, field) for found, message, field in fields(manifest) if found == path)
    for _ in senseless(message, field):
        write(version, json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode())
        try:
            client = glowserve.open(version, device="cpu")
        except BundleError as error:
            text = str(error)
            assert text.startswith(f"bundle {version}: ")
            assert "export" in text
            assert len(text) < 1500
            continue
        scores = client.score(digits[:2])
        assert math.isfinite(scores.bits_per_dim[0])
        assert 0 <= scores.percentile[0] <= 100
        opened = open_bundle(version).manifest
        assert verification_table(opened)
        assert steps_table(opened) is not None


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"image": {"n_bits": 3}}, r"the manifest's image\.n_bits is 3, and the graphs do not"),
        ({"image": {"n_bits": 5}}, r"the manifest's image\.n_bits is 5, and the graphs do not"),
        ({"log_det_constant": 0.0}, r"the manifest's log_det_constant is 0, and with it the terms"),
        ({"flow": {"levels": 1}}, r"forward\.onnx returns .*, which is not what the manifest says"),
        ({"flow": {"precision": "fp64"}}, r"flow\.precision is 'fp64' and must be one of fp32, fp16, int8"),
        (
            {"calibration": {"bits_per_dim": [2.0, 1.0]}},
            r"calibration\.bits_per_dim is not in ascending order",
        ),
        ({"tools": {"numpy": 5000 * "1"}}, r"the manifest's tools has 5000 characters and may have 4096"),
        ({"tools": {5000 * "1": "numpy"}}, r"the manifest's tools has 5000 characters and may have 4096"),
        ({"files": []}, r"the manifest does not mention flow\.json"),
    ],
)
def test_a_manifest_that_contradicts_its_graphs_is_refused(
    version: Path, changes: dict[str, Any], words: str
) -> None:
    manifest = json.loads((version / "manifest.json").read_text())
    for name, value in changes.items():
        manifest[name] = manifest[name] | value if isinstance(value, dict) else value
    write(version, json.dumps(manifest).encode())
    with pytest.raises(BundleError, match=words):
        glowserve.open(version, device="cpu")


@pytest.mark.parametrize(
    "data",
    [
        b'{"model": "a", "model": "b"}',
        b'{"files": ' + 100_000 * b'[{"files": ',
        b'{"version": ' + 5000 * b"9" + b"}",
        b'{"version": 1e999}',
        b'{"version": "1e400"}',
        b'{"image": {"height": 1.5}}',
        b'{"image": {"height": -1}}',
        b'{"model": "\xff"}',
        b'{"model": "\\ud800"}',
        b'{"canary": {"image": "a"}}',
        b'{"created_at": "yesterday"}',
        b'{"training": {"metrics": {"a": "b"}}}',
        b'\xef\xbb\xbf{"format_version": 1}',
        b'"text"',
        b"\0" * 1000,
    ],
)
def test_json_that_is_no_manifest_is_refused_in_one_short_line(version: Path, data: bytes) -> None:
    write(version, data)
    with pytest.raises(
        BundleError, match=r"manifest\.json is not a manifest: .*; export the model again"
    ) as caught:
        read_manifest(version)
    assert len(str(caught.value)) < 600
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["manifest.json", "manifest.json.sha256", "forward.onnx"])
def test_a_file_of_three_gibibytes_is_refused_without_being_read(version: Path, name: str) -> None:
    with (version / name).open("r+b") as file:
        file.truncate(3 * 2**30)  # without a block on the disk
    with pytest.raises(BundleError, match=rf"{name} .*it has 3221225472 bytes and may have \d+"):
        open_bundle(version).read("forward.onnx")

"""Formats 2 and 3: `flow.json` has what format 1 does not know, and older services say which formats they read."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, json_format, message_factory
from google.protobuf.timestamp_pb2 import DESCRIPTOR as TIMESTAMP

from glowserve.images import Preparation
from glowserve.runtime.errors import BundleError
from glowserve.runtime.manifest import FORMAT_2_FIELDS, manifest_checksum
from glowserve.runtime.repository import Bundle, fingerprint, open_bundle
from glowserve.v1 import manifest_pb2


@pytest.fixture
def version(bundle: Bundle, tmp_path: Path) -> Path:
    shutil.copytree(bundle.path, tmp_path / "digits" / "1")
    return tmp_path / "digits" / "1"


def _edit(version: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((version / "manifest.json").read_text())
    change(manifest)
    data = json.dumps(manifest).encode()
    (version / "manifest.json").write_bytes(data)
    (version / "manifest.json.sha256").write_bytes(manifest_checksum(data))


def _write_flow(version: Path, data: bytes) -> None:
    """Writes flow.json, and its hash into the manifest."""
    (version / "flow.json").write_bytes(data)
    stated = {"name": "flow.json", "sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
    _edit(version, lambda manifest: manifest["files"].__setitem__(2, stated))


def _manifest_of_format_1() -> Any:
    """A manifest of the contract before format 2."""
    file = descriptor_pb2.FileDescriptorProto()
    manifest_pb2.DESCRIPTOR.CopyToProto(file)
    flow = next(message for message in file.message_type if message.name == "Flow")
    for field in [field for field in flow.field if field.name in FORMAT_2_FIELDS]:
        flow.field.remove(field)
    pool: Any = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(TIMESTAMP.serialized_pb)
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("glowserve.v1.Manifest"))()


def test_the_flow_is_read_from_both_files(bundle: Bundle) -> None:
    flow = bundle.manifest.flow
    assert (flow.preprocessing, flow.coupling_scale, flow.checkerboards) == ("logit", "tanh", 4)
    assert (flow.coupling, flow.levels) == ("affine", 2)
    stored = json.loads((bundle.path / "flow.json").read_text())
    assert stored == {"preprocessing": "logit", "coupling_scale": "tanh", "checkerboards": 4}


def test_a_service_that_reads_format_1_gets_to_the_version_of_the_format(bundle: Bundle) -> None:
    """It refuses names that it does not know before it looks at the version."""
    old = _manifest_of_format_1()
    json_format.Parse((bundle.path / "manifest.json").read_bytes(), old)
    assert old.format_version == 2
    with pytest.raises(json_format.ParseError, match="no field named"):
        json_format.Parse((bundle.path / "flow.json").read_bytes(), old.flow)


def test_a_missing_flow_is_refused_by_name_and_its_arrival_is_noticed(version: Path, tmp_path: Path) -> None:
    before = fingerprint(version)
    (version / "flow.json").rename(tmp_path / "flow.json")
    with pytest.raises(BundleError, match=r"flow\.json cannot be read: No such file or directory"):
        open_bundle(version)
    assert fingerprint(version) != before


def test_a_flow_with_a_flipped_bit_is_refused(version: Path) -> None:
    data = bytearray((version / "flow.json").read_bytes())
    for place in range(len(data)):
        flipped = data.copy()
        flipped[place] ^= 1 << place % 8
        (version / "flow.json").write_bytes(flipped)
        with pytest.raises(BundleError, match=r"flow\.json is not the file that was exported .*SHA-256"):
            open_bundle(version)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"{", r"flow\.json is not a flow: "),
        (b"[" * 100_000, r"flow\.json is not a flow: "),
        (b'{"preprocesing": "logit"}', r"flow\.json is not a flow: .* no field named"),
        (b'{"preprocessing": "sqrt"}', r"flow\.preprocessing is 'sqrt' and must be one of centre, logit"),
        (b'{"coupling_scale": "exp"}', r"flow\.coupling_scale is 'exp' and must be one of sigmoid, tanh"),
        (b'{"checkerboards": -1}', r"flow\.json is not a flow: "),
        (b'{"levels": 9}', r"flow\.levels is 9 and must lie in"),
    ],
)
def test_a_flow_that_makes_no_sense_is_refused(version: Path, data: bytes, words: str) -> None:
    _write_flow(version, data)
    with pytest.raises(BundleError, match=words) as caught:
        open_bundle(version)
    assert "export the model again" in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_flow_of_three_gibibytes_is_refused_without_being_read(version: Path) -> None:
    size = 3 * 2**30
    with (version / "flow.json").open("r+b") as file:
        file.truncate(size)  # without a block on the disk

    def edit(manifest: dict[str, Any]) -> None:
        (flow,) = [entry for entry in manifest["files"] if entry["name"] == "flow.json"]
        flow["size"] = size

    _edit(version, edit)
    with pytest.raises(BundleError, match=rf"flow\.json .*it has {size} bytes and may have 16777216"):
        open_bundle(version)


def test_format_1_has_none_of_these_fields(version: Path) -> None:
    _edit(version, lambda manifest: manifest.update(format_version=1))
    assert not open_bundle(version).manifest.flow.preprocessing, "flow.json belongs to format 2"
    _edit(version, lambda manifest: manifest["flow"].update(checkerboards=2))
    with pytest.raises(BundleError, match=r"flow\.checkerboards is 2, and format 1 has no such field"):
        open_bundle(version)


@pytest.mark.parametrize(
    ("part", "values", "words"),
    [
        ("image", {"channels": 4, "latent_size": 256}, r"image\.channels, which is 4,"),
        ("preparation", {"fit": "pad"}, r"preparation\.fit, which is 'pad',"),
        ("preparation", {"bits_used": 12}, r"preparation\.bits_used, which is 12,"),
    ],
)
def test_what_format_2_does_not_know_is_refused_in_it(
    part: str, values: dict[str, Any], words: str, version: Path
) -> None:
    _edit(version, lambda manifest: manifest[part].update(values))
    with pytest.raises(BundleError, match=f"{words} belongs to format 3, and its format is 2"):
        open_bundle(version)


def test_an_unknown_rule_for_pictures_is_refused(version: Path) -> None:
    _edit(version, lambda manifest: manifest.update(format_version=3))
    assert open_bundle(version).preparation == Preparation()
    _edit(version, lambda manifest: manifest["preparation"].update(fit="fill"))
    with pytest.raises(BundleError, match="preparation: fit is 'fill'; it must be one of crop, pad"):
        open_bundle(version)


def test_a_younger_format_is_refused_as_such_whatever_else_it_has(version: Path) -> None:
    def change(manifest: dict[str, Any]) -> None:
        manifest |= {"format_version": 5, "a field": [{"of": "format 5"}], "randomness": "A_YOUNGER_VERSION"}
        manifest["flow"]["spline"] = True

    _edit(version, change)
    with pytest.raises(BundleError, match="its format is version 5 and this service reads 1 to 4; export"):
        open_bundle(version)

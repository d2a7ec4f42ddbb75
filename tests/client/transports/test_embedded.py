"""Opening a bundle: which version, and which bundles are refused. The calls of an open bundle are in test_client.py."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import json_format

import glowserve
from glowserve.client.transports.embedded import EmbeddedTransport
from glowserve.images import UInt8Array
from glowserve.messages import images_message
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.manifest import manifest_checksum
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest


@pytest.fixture
def version(repository: Path, tmp_path: Path) -> Path:
    """A copy of the shared bundle, as version 1 of `digits`."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "digits" / "1")
    return tmp_path / "digits" / "1"


def test_the_newest_version_is_opened_by_default(version: Path) -> None:
    for number in ("9", "10"):
        shutil.copytree(version, version.with_name(number))
    for path, expected in ((version.parent, 10), (version.with_name("9"), 9)):
        (model,) = glowserve.open(path).models()
        assert (model.name, model.version) == ("digits", expected)
    client = glowserve.open(str(version.parent))
    assert client.sample(1, temperature=0, version=10).version == 10
    with pytest.raises(glowserve.RequestError, match=r"NOT_FOUND.*version 9.*open is digits version 10"):
        client.sample(1, version=9)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_without_a_bundle_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=f"{tmp_path / name}.*no bundle"):
        glowserve.open(tmp_path / name)


def test_a_damaged_bundle_is_refused(version: Path) -> None:
    graph = version / "reverse.onnx"
    data = bytearray(graph.read_bytes())
    data[1000] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"reverse\.onnx is not the file that was exported"):
        glowserve.open(version)


def test_a_bundle_whose_canary_fails_is_refused(version: Path) -> None:
    manifest = json_format.Parse((version / "manifest.json").read_bytes(), Manifest())
    manifest.canary.log_likelihood *= 1.01
    data = json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode()
    (version / "manifest.json").write_bytes(data)
    (version / "manifest.json.sha256").write_bytes(manifest_checksum(data))
    with pytest.raises(
        BundleError, match=r"its canary has a log-likelihood .* does not compute what the export"
    ):
        glowserve.open(version, device="cpu")


def test_an_unknown_device_is_refused(repository: Path) -> None:
    with pytest.raises(DeviceError, match="device is 'tpu'"):
        glowserve.open(repository / "digits", device="tpu")


def test_an_open_bundle_is_closed_like_a_client(repository: Path) -> None:
    with glowserve.open(repository / "digits") as client:
        assert len(client.sample(2, temperature=0)) == 2


def test_requests_of_a_stream_are_read_one_at_a_time(repository: Path, digits: UInt8Array) -> None:
    transport = EmbeddedTransport(repository / "digits", RuntimeConfig(device="cpu"))
    read: list[int] = []

    def requests() -> Iterator[pb.ScoreRequest]:
        for i in range(5):
            read.append(i)
            yield pb.ScoreRequest(images=images_message(digits[i : i + 2]))

    for taken, response in enumerate(transport.score_stream(requests()), 1):
        assert len(response.scores) == 2
        assert len(read) == taken
    transport.close()

"""A bundle in one's own process; that it answers as a client does is shown beside the client."""

from __future__ import annotations

import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf import json_format

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.errors import BundleError, DeviceError
from glowserve.runtime.repository import manifest_checksum
from glowserve.v1.manifest_pb2 import Manifest


def copied(source: Path, target: Path, version: int) -> None:
    """A copy of a bundle as another version."""
    shutil.copytree(source, target / str(version))


def test_the_newest_version_is_opened_unless_one_is_named(repository: Path, tmp_path: Path) -> None:
    for version in (2, 9, 10):
        copied(repository / "digits" / "1", tmp_path / "digits", version)
    for path, version in ((tmp_path / "digits", 10), (tmp_path / "digits" / "9", 9)):
        (model,) = glowserve.open(path).models()
        assert (model.name, model.version) == ("digits", version)
    model = glowserve.open(str(tmp_path / "digits"))
    assert model.sample(1, temperature=0, version=10).version == 10
    with pytest.raises(glowserve.RequestError, match=r"NOT_FOUND.*version 9.*open is digits version 10"):
        model.sample(1, version=9)


@pytest.mark.parametrize("name", ["nowhere", "."])
def test_a_folder_without_a_bundle_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=f"{tmp_path / name}.*no bundle"):
        glowserve.open(tmp_path / name)


def test_a_damaged_bundle_is_refused(repository: Path, tmp_path: Path) -> None:
    copied(repository / "digits" / "1", tmp_path, 1)
    graph = tmp_path / "1" / "reverse.onnx"
    data = bytearray(graph.read_bytes())
    data[1000] ^= 1
    graph.write_bytes(data)
    with pytest.raises(BundleError, match=r"reverse\.onnx is not the file that was exported"):
        glowserve.open(tmp_path)


def test_a_bundle_that_does_not_compute_what_was_proved_is_refused(repository: Path, tmp_path: Path) -> None:
    copied(repository / "digits" / "1", tmp_path, 1)
    manifest = json_format.Parse((tmp_path / "1" / "manifest.json").read_bytes(), Manifest())
    manifest.canary.log_likelihood *= 1.01
    data = json_format.MessageToJson(manifest, preserving_proto_field_name=True).encode()
    (tmp_path / "1" / "manifest.json").write_bytes(data)
    (tmp_path / "1" / "manifest.json.sha256").write_bytes(manifest_checksum(data))
    with pytest.raises(
        BundleError, match=r"its canary has a log-likelihood .* does not compute what was proved"
    ):
        glowserve.open(tmp_path, device="cpu")


def test_an_unknown_device_is_refused(repository: Path) -> None:
    with pytest.raises(DeviceError, match="device is 'tpu'"):
        glowserve.open(repository / "digits", device="tpu")


def test_threads_may_share_an_open_bundle(embedded: Any, digits: UInt8Array) -> None:
    expected = embedded.score(digits).log_likelihood
    with ThreadPoolExecutor(8) as pool:
        parts = pool.map(lambda i: embedded.score(digits[i : i + 5]).log_likelihood, range(0, 175, 5))
        np.testing.assert_allclose(np.concatenate(list(parts)), expected[:175], rtol=1e-5)


def test_a_bundle_is_closed_as_a_client_is(repository: Path) -> None:
    model = glowserve.open(repository / "digits")
    assert len(model.sample(2, temperature=0)) == 2
    model.close()


def test_importing_glowserve_brings_neither_service_nor_runtime() -> None:
    heavy = ("service", "training", "export", "onnxruntime", "torch", "onnx")
    program = f"import glowserve, sys; print([name for name in {heavy} if name in sys.modules])"
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True
    )
    assert ended.stdout.strip() == "[]"

"""Makes bundles that give other answers out of a bundle, without training."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from google.protobuf import json_format
from onnx import numpy_helper

from glowserve.runtime.attributes import Attributes, write_attributes
from glowserve.runtime.calibration import bundle_calibration
from glowserve.runtime.canary import draw_canary
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.manifest import CALIBRATION, manifest_checksum
from glowserve.runtime.randomness import latents
from glowserve.runtime.repository import ATTRIBUTES, open_bundle
from glowserve.scores import Calibration, complexity
from glowserve.scores.calibration import write_calibration

BoolArray = npt.NDArray[np.bool_]


def make_other(source: Path, target: Path, *, log_det: float, bins: float) -> None:
    """Copies a bundle to one whose scores and samples differ, and whose canary passes.

    Args:
        source: a VERSION folder.
        target: the new VERSION folder.
        log_det: factor of the constant part of the log-likelihood.
        bins: factor of the contrast of samples.
    """
    shutil.copytree(source, target)
    stated = json.loads((target / "manifest.json").read_text())["log_det_constant"]
    _change(target, "forward.onnx", "log_det_constant", lambda constant: constant + stated * (log_det - 1))
    scale(target, "reverse.onnx", "bins", bins)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["log_det_constant"] = stated * log_det
    _write(target, manifest)
    _renew_canary(target)


def make_explosive(source: Path, target: Path) -> None:
    """Copies a bundle to one whose samples at temperature 1 leave float32 in about half of the attempts.

    Args:
        source: a VERSION folder.
        target: the new VERSION folder; its canary passes.
    """
    drawn = latents(0, 0, 200, open_bundle(source).manifest.image.latent_size)

    def finite(engine: Engine) -> BoolArray:
        found: BoolArray = np.isfinite(engine.reverse(drawn).pixels).all(axis=(1, 2, 3))
        return found

    explode(source, target, ("reverse.onnx",), finite, least=0.4, most=0.5)
    _renew_canary(target)


def explode(
    source: Path,
    target: Path,
    graphs: tuple[str, ...],
    finite: Callable[[Engine], BoolArray],
    *,
    least: float,
    most: float,
) -> BoolArray:
    """Copies a bundle to one whose prior is so wide that a part of the results leaves float32.

    Args:
        source: a VERSION folder.
        target: the new VERSION folder; its canary may fail.
        graphs: those whose prior is changed, such as "forward.onnx".
        finite: computes results, and says which are finite, [N].
        least: the least share of results that stay finite.
        most: the largest.

    Returns:
        Which results stay finite, [N].
    """
    low, high = 0.0, 6.0  # logarithms of the factor, whose growth leaves fewer results finite
    for _ in range(20):
        factor = 10 ** ((low + high) / 2)
        shutil.copytree(source, target)
        for graph in graphs:
            scale(target, graph, "prior.bound", factor)
        stay = finite(Engine(open_bundle(target), RuntimeConfig(device="cpu", threads=1)))
        if least < stay.mean() < most:
            return stay
        low, high = (low, (low + high) / 2) if stay.mean() <= least else ((low + high) / 2, high)
        shutil.rmtree(target)
    raise AssertionError(f"no factor keeps between {least:.0%} and {most:.0%} of the results in float32")


def with_randomness(source: Path, target: Path, randomness: int) -> None:
    """Copies a bundle to one of another RandomnessVersion."""
    shutil.copytree(source, target)
    _write(target, json.loads((target / "manifest.json").read_text()) | {"randomness": randomness})


def scale(version: Path, graph: str, constant: str, factor: float) -> None:
    """Multiplies a constant of a graph in a VERSION folder. Its canary fails from then on."""
    _change(version, graph, constant, lambda values: values * np.float32(factor))


def _change(version: Path, graph: str, constant: str, change: Callable[[Any], Any]) -> None:
    model = onnx.load(version / graph)
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == constant]
    with np.errstate(over="ignore"):  # infinity is what some tests want
        changed = np.asarray(change(numpy_helper.to_array(tensor)), np.float32)
    tensor.CopyFrom(numpy_helper.from_array(changed, constant))
    write_file(version, graph, model.SerializeToString())


def _renew_canary(version: Path) -> None:
    """Draws the canary of a changed bundle."""
    bundle = open_bundle(version)
    engine = Engine(bundle, RuntimeConfig(device="cpu", threads=1))
    drawn = draw_canary(engine, bundle.manifest.image.latent_size)
    manifest = json.loads((version / "manifest.json").read_text())
    manifest["canary"] = json.loads(json_format.MessageToJson(drawn, preserving_proto_field_name=True))
    _write(version, manifest)
    if (calibration := bundle_calibration(bundle)) is not None:
        canary = np.frombuffer(drawn.image, np.uint8).reshape(bundle.shape)
        write_file(
            version,
            CALIBRATION,
            write_calibration(replace(calibration, codec=complexity.fingerprint(canary))),
        )


def write_file(version: Path, name: str, data: bytes) -> None:
    """Replaces a file of a bundle that its manifest lists."""
    (version / name).write_bytes(data)
    manifest = json.loads((version / "manifest.json").read_text())
    for file in manifest["files"]:
        if file["name"] == name:
            file |= {"sha256": hashlib.sha256(data).hexdigest(), "size": str(len(data))}
    _write(version, manifest)


def without_calibration(source: Path, target: Path) -> None:
    """Copies a bundle to one as older releases wrote them, without calibration.npz."""
    shutil.copytree(source, target)
    (target / CALIBRATION).unlink()
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"] = [file for file in manifest["files"] if file["name"] != CALIBRATION]
    _write(target, manifest)


def with_attributes(source: Path, target: Path, attributes: Attributes) -> None:
    """Copies a bundle to one with attributes."""
    shutil.copytree(source, target)
    manifest = json.loads((target / "manifest.json").read_text())
    manifest["files"].append({"name": ATTRIBUTES})
    _write(target, manifest)
    write_file(target, ATTRIBUTES, write_attributes(attributes))


def change_calibration(source: Path, target: Path, change: Callable[[Calibration], Calibration]) -> None:
    """Copies a bundle to one with another calibration."""
    shutil.copytree(source, target)
    calibration = bundle_calibration(open_bundle(source))
    assert calibration is not None
    write_file(target, CALIBRATION, write_calibration(change(calibration)))


def _write(version: Path, manifest: dict[str, Any]) -> None:
    data = json.dumps(manifest).encode()
    (version / "manifest.json").write_bytes(data)
    (version / "manifest.json.sha256").write_bytes(manifest_checksum(data))

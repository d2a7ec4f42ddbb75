"""Exporting: which version a bundle gets, and that it is published completely or not at all."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import glowserve_export.bundle
import numpy as np
import onnx
import pytest
from glowserve_export.bundle import export
from glowserve_export.errors import ExportError, VerificationError
from glowserve_export.folded import FoldedGlow
from glowserve_export.precision import Precision
from glowserve_export.source import Source

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine, Float32Array, Forward
from tests.export.unpublished import add_to_constant


def _entries(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()} if folder.exists() else set()


# Versions


def test_each_export_gets_the_next_version_and_the_same_graphs(source: Source, tmp_path: Path) -> None:
    model = tmp_path / "digits"
    bundles = [export(source, model) for _ in range(2)]
    assert _entries(model) == {"1", "2"}
    assert [bundle.manifest.version for bundle in bundles] == [1, 2]
    assert [bundle.path for bundle in bundles] == [model / "1", model / "2"]
    for name in ("forward.onnx", "reverse.onnx", "explain.onnx", "explain.npy"):
        assert bundles[0].read(name) == bundles[1].read(name)
    assert bundles[0].manifest.calibration == bundles[1].manifest.calibration
    assert bundles[0].manifest.verification == bundles[1].manifest.verification


def test_the_next_version_follows_the_highest_number(source: Source, tmp_path: Path) -> None:
    for name in ("9", "10", "11.old", "latest"):
        (tmp_path / "digits" / name).mkdir(parents=True)
        (tmp_path / "digits" / name / "kept").touch()
    assert export(source, tmp_path / "digits").path.name == "11"
    assert all((tmp_path / "digits" / name / "kept").exists() for name in ("9", "10", "11.old", "latest"))


def test_two_simultaneous_exports_get_two_versions(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = threading.Barrier(2, timeout=60)
    next_version, thread = glowserve_export.publication._next_version, threading.local()

    def simultaneous(model: Path) -> int:
        found = next_version(model)
        if not hasattr(thread, "waited"):  # both choose the same version before either publishes
            thread.waited = True
            both.wait()
        return found

    monkeypatch.setattr(glowserve_export.publication, "_next_version", simultaneous)
    with ThreadPoolExecutor(2) as pool:
        exports = [pool.submit(export, source, tmp_path / "digits") for _ in range(2)]
        bundles = [future.result(60) for future in exports]
    assert sorted(bundle.manifest.version for bundle in bundles) == [1, 2]
    assert _entries(tmp_path / "digits") == {"1", "2"}
    for bundle in bundles:
        assert bundle.path.name == str(bundle.manifest.version)


def test_the_number_of_a_file_is_skipped(source: Source, tmp_path: Path) -> None:
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "1").write_text("not a folder")
    assert export(source, tmp_path / "digits").manifest.version == 2
    assert _entries(tmp_path / "digits") == {"1", "2"}


# All or nothing


def test_a_bundle_appears_complete_after_its_verification(source: Source, tmp_path: Path) -> None:
    model, stages = tmp_path / "digits", []

    def say(text: str) -> None:
        visible = {name for name in _entries(model) if not name.startswith(".")}
        stages.append((text.partition(" ")[0], visible))

    bundle = export(source, model, say=say)
    stages_of_export = ("reading", "writing", "verifying", "scoring", "measuring")
    assert stages == [(stage, set()) for stage in stages_of_export]
    files = {"manifest.json", "manifest.json.sha256", "flow.json", "calibration.npz"}
    graphs = {"forward.onnx", "reverse.onnx", "explain.onnx", "explain.npy"}
    assert _entries(bundle.path) == files | graphs


def test_a_bundle_is_readable_by_all_users_whatever_the_umask(source: Source, tmp_path: Path) -> None:
    umask = os.umask(0o077)
    try:
        bundle = export(source, tmp_path / "digits")
    finally:
        os.umask(umask)
    for file in bundle.path.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644
    assert bundle.path.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("stage", ["writing", "verifying", "scoring", "measuring"])
def test_an_interrupted_export_leaves_nothing(source: Source, tmp_path: Path, stage: str) -> None:
    def say(text: str) -> None:
        if text.startswith(stage):
            assert [name[0] for name in _entries(tmp_path / "digits")] == ["."]
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(source, tmp_path / "digits", say=say)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("writer", "constant", "message"),
    [
        ("forward_graph", "level1.step2.mix.weight", "log-likelihood, relative error is "),
        ("reverse_graph", "level1.step2.weight", "round trip, values changed is "),
    ],
)
def test_a_value_that_misses_its_bound_ends_the_export_with_nothing_written(
    writer: str, constant: str, message: str, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write: Callable[[FoldedGlow, Precision], onnx.ModelProto] = getattr(glowserve_export.bundle, writer)

    def write_changed(glow: FoldedGlow, precision: Precision) -> onnx.ModelProto:
        model = write(glow, precision)
        add_to_constant(constant, 0.5)(model)
        return model

    monkeypatch.setattr(glowserve_export.bundle, writer, write_changed)
    with pytest.raises(VerificationError, match=rf"^{message}.*Nothing was written"):
        export(source, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["..", ".hidden", "-flag", "_x", "two words", "dígitos", "x" * 129, "new\nline"]
)
def test_an_invalid_model_name_is_refused(source: Source, tmp_path: Path, name: str) -> None:
    (tmp_path / "models").mkdir()
    with pytest.raises(ExportError, match=r"model name is .*must be 1 to 128 letters"):
        export(source, tmp_path / "models" / name)
    assert _entries(tmp_path / "models") == set()


def test_a_held_out_image_without_a_finite_likelihood_ends_the_export(
    source: Source, calibration: UInt8Array, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Engine):
        """Overflows on one image, which is used for percentiles and not in the verification."""

        def forward(self, images: UInt8Array, noise: Float32Array) -> Forward:
            result = super().forward(images, noise)
            overflowing = (images == calibration[40]).all(axis=(1, 2, 3))
            return replace(result, log_likelihood=np.where(overflowing, -np.inf, result.log_likelihood))

    monkeypatch.setattr(glowserve_export.bundle, "Engine", Overflowing)
    with pytest.raises(VerificationError, match="1 of 90 held-out images have no finite likelihood"):
        export(source, tmp_path / "digits")
    assert list(tmp_path.iterdir()) == []


def test_the_staging_folder_of_a_killed_export_is_deleted_and_that_of_a_running_one_kept(
    source: Source, tmp_path: Path
) -> None:
    model = tmp_path / "digits"
    for name in ("dead", "alive", "new"):
        (model / f".staging-{name}").mkdir(parents=True)
        (model / f".staging-{name}" / "forward.onnx").write_bytes(b"half")
    for name in ("dead", "alive"):
        os.utime(model / f".staging-{name}", (0, 0))
    alive = os.open(model / ".staging-alive", os.O_RDONLY)
    own: list[str] = []

    def say(stage: str) -> None:
        if stage == "writing graphs":
            own.extend(_entries(model) - {".staging-alive", ".staging-new"})
            folder = os.open(model / own[0], os.O_RDONLY)
            with pytest.raises(BlockingIOError):
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.close(folder)

    try:
        fcntl.flock(alive, fcntl.LOCK_EX)
        export(source, model, say=say)
    finally:
        os.close(alive)
    assert len(own) == 1
    assert _entries(model) == {"1", ".staging-alive", ".staging-new"}

"""Loading a version: the bundle is opened, run at every batch size, and its canary is checked."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.loading import load_model, padded_sizes, public_sentence

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import fingerprint, open_bundle
from tests.service.wire import copied


def config_of(repository: Path) -> ServiceConfig:
    return ServiceConfig(repository=repository, device="cpu")


def test_a_loaded_model_knows_the_state_of_its_files(repository: Path) -> None:
    path = repository / "digits" / "1"
    loaded = load_model(path, config_of(repository))
    assert loaded.fingerprint == fingerprint(path)
    assert loaded.bundle.manifest.model == "digits"


def test_every_batch_size_is_run_before_the_model_is_served(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    forward = Engine.forward

    def counted(engine: Engine, images: object, noise: object) -> object:
        sizes.append(len(images))  # type: ignore[arg-type]
        return forward(engine, images, noise)  # type: ignore[arg-type]

    monkeypatch.setattr(Engine, "forward", counted)
    monkeypatch.setattr(
        "glowserve_service.models.loading.padded_sizes", lambda _engine, _config: (1, 2, 4, 5)
    )
    load_model(
        repository / "digits" / "1", ServiceConfig(repository=repository, device="cpu", max_batch_size=5)
    )
    assert sizes == [1, 2, 4, 5, 1, 1, 1, 1]  # the last are the canary and its bins


def test_batches_on_a_cpu_are_not_padded(engine: Engine, repository: Path) -> None:
    assert padded_sizes(engine, config_of(repository)) == ()


def test_an_engine_that_fails_in_its_first_run_is_closed_and_named(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[Engine] = []

    def fail(*_: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    def close(engine: Engine) -> None:
        closed.append(engine)

    monkeypatch.setattr(Engine, "reverse", fail)
    monkeypatch.setattr(Engine, "close", close)
    path = repository / "digits" / "1"
    with pytest.raises(BundleError) as caught:
        load_model(path, config_of(repository))
    assert str(caught.value) == f"bundle {path}: its first run failed: CUDA error: out of memory"
    assert len(closed) == 1


def test_a_manifest_of_another_shape_than_its_graphs_is_refused(repository: Path, tmp_path: Path) -> None:
    image = {"height": 4, "width": 16, "channels": 1, "n_bits": 4, "latent_size": 64}
    version = copied(repository / "digits" / "1", tmp_path / "digits" / "1", image=image)
    with pytest.raises(BundleError, match="not what the manifest says"):
        load_model(version, config_of(tmp_path))


def test_a_bundle_that_changes_while_it_is_read_is_never_loaded_as_a_mixture(
    repository: Path, second: Path, tmp_path: Path
) -> None:
    """The manifest was read before the files were replaced, the graphs are read afterwards."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "1")
    bundle = open_bundle(tmp_path / "1")
    for name in ("forward.onnx", "reverse.onnx", "manifest.json", "manifest.json.sha256", "flow.json"):
        shutil.copy(second / name, tmp_path / "1" / name)
    with pytest.raises(BundleError, match=r"forward\.onnx is not the file that was exported"):
        Engine(bundle, RuntimeConfig(device="cpu"))


def test_what_callers_read_of_an_error_has_one_line_and_no_path() -> None:
    path = Path("/srv/models/digits/3")
    assert (
        public_sentence("bundle /srv/models/digits/3: it is\n  damaged", path)
        == "bundle digits/3: it is damaged"
    )

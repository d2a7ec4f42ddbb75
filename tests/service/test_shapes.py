"""From pictures of mixed shapes, with alpha, to a wide padded model, its bundle, the service, and its clients."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from glowserve_export.bundle import export
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_service.server import Server
from glowserve_training.hardware import Hardware
from glowserve_training.presets import run_config
from glowserve_training.run import train
from PIL import Image

import glowserve
from glowserve.cli import main
from glowserve.images import Preparation, UInt8Array, decode_png, encode_png, open_encoded, prepare
from glowserve.runtime import manifest as manifests
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import Bundle, newest_bundle, open_bundle
from tests.servers import run_server
from tests.ui.data_urls import data_of
from tests.ui.http_requests import post
from tests.ui.serving import serve_pages

SHAPE = (4, 12, 4)
PADDING = Preparation(fit="pad")
EXTREME = [(1, 1), (1, 300), (300, 1), (4, 12), (5, 7)]
"""Heights and widths."""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a model as `wide`, version 1."""
    folder, rng = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    (folder / "pictures").mkdir()
    for i in range(60):
        pixels = rng.integers(100, 156, (*rng.integers(3, 15, 2), 4 if i % 2 else 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "pictures" / f"{i}.png")
    config = run_config(
        str(folder / "pictures"),
        image_size="4x12",
        channels=4,
        fit="pad",
        **{"levels": 2, "steps_per_level": 1, "width": 4, "steps": 6, "batch_size": 16},
        **{"preprocessing": "logit", "checkerboards": 1, "dequantization": "variational"},
    )
    checkpoint = train(config, folder / "run", hardware=Hardware(device="cpu"))
    export(load_glowserve_checkpoint(checkpoint), folder / "models" / "wide")
    return folder / "models"


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return newest_bundle(models / "wide")


@pytest.fixture(scope="module")
def wide_server(models: Path) -> Iterator[Server]:
    with run_server(models) as server:
        yield server


@pytest.fixture(scope="module")
def client(wide_server: Server) -> Iterator[glowserve.Client]:
    with glowserve.Client(f"localhost:{wide_server.port}") as client:
        yield client


def _files() -> list[bytes]:
    rng = np.random.default_rng(1)
    return [encode_png(rng.integers(0, 256, (*size, 4), dtype=np.uint8)) for size in EXTREME]


def _prepared(files: list[bytes]) -> UInt8Array:
    return np.stack([prepare(open_encoded(file), *SHAPE, PADDING) for file in files])


def test_the_manifest_has_the_shape_and_the_rule_and_the_format_that_older_services_refuse(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert bundle.shape == SHAPE
    assert bundle.preparation == PADDING
    assert bundle.manifest.format_version == 3

    monkeypatch.setattr(manifests, "FORMAT_VERSIONS", (1, 2))
    with pytest.raises(
        BundleError, match="its format is version 3 and this service reads 1 to 2; export the model"
    ):
        open_bundle(bundle.path)


def test_pictures_of_extreme_proportions_score_alike_in_every_way(
    client: glowserve.Client, models: Path
) -> None:
    files = _files()
    arrays = _prepared(files)

    expected = client.score(arrays).log_likelihood

    assert np.isfinite(expected).all()
    np.testing.assert_array_equal(client.score(files).log_likelihood, expected)
    with glowserve.open(models / "wide") as opened:
        np.testing.assert_array_equal(opened.score(files).log_likelihood, expected)
        np.testing.assert_array_equal(opened.score(arrays).log_likelihood, expected)


def test_samples_have_the_shape_and_decode_from_their_latents(client: glowserve.Client) -> None:
    samples = client.sample(3, seed=0, temperature=0.5).images

    assert samples.shape == (3, *SHAPE)
    encoded = client.encode(samples)
    assert (encoded.mismatched_values == 0).all()
    np.testing.assert_array_equal(client.decode(encoded.latents), samples)


def test_an_explanation_has_the_height_and_the_width(client: glowserve.Client) -> None:
    explained = client.explain(_prepared(_files()))

    assert explained.deviations.shape == (len(EXTREME), *SHAPE[:2])


def test_the_page_of_scores_shows_pictures_as_the_model_sees_them(wide_server: Server) -> None:
    files = _files()
    with serve_pages(f"localhost:{wide_server.port}") as url:
        page = post(url, "/score", [("pictures", f"{i}.png", file) for i, file in enumerate(files)]).text
    shown = re.findall(r'<img src="([^"]+)" alt="(\d)\.png, as the model sees it">', page)
    assert sorted(int(i) for _, i in shown) == list(range(len(files)))
    for source, i in shown:
        np.testing.assert_array_equal(decode_png(data_of(source)), _prepared(files)[int(i)])


def test_an_array_with_height_and_width_exchanged_is_refused(client: glowserve.Client) -> None:
    with pytest.raises(glowserve.RequestError, match=r"\[1, 12, 4, 4\]; this model takes \[N, 4, 12, 4\]"):
        client.score(np.zeros((12, 4, 4), np.uint8))


def test_the_command_line_scores_samples_and_draws(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for i, data in enumerate(_files()):
        (tmp_path / f"{i}.png").write_bytes(data)
    model, files = str(models / "wide"), [str(tmp_path / f"{i}.png") for i in range(len(EXTREME))]

    assert main(["score", *files, "--model", model, "--explain", str(tmp_path / "maps"), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(lines) == len(EXTREME)
    assert len(list((tmp_path / "maps").iterdir())) == len(EXTREME)
    assert (
        main(["sample", "--model", model, "--n", "6", "--seed", "0", "--out", str(tmp_path / "s.png")]) == 0
    )
    with Image.open(tmp_path / "s.png") as grid:
        assert grid.mode == "RGBA"
        assert 0.5 < grid.width / grid.height < 2
    assert main(["inspect", model]) == 0
    assert "4 x 12 RGB with alpha" in capsys.readouterr().out

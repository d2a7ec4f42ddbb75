"""The alert of changed traffic, with a real Prometheus, a service, and a model of photographs."""

from __future__ import annotations

import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from glowserve_export.corruptions import blurred

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.repository import Bundle
from tests.prometheus import changed_models, program, prometheus, scrapes
from tests.service.wire import wait_for
from tests.soak.conftest import Serve
from tests.soak.report import print_table
from tests.soak.service import Service

FRESH, CONTROLS, IMAGES, BATCH = 4000, 20, 500, 25
RADIUS = 0.7
"""Pixels: one image in a hundred has a p-value of 0.01 or less, blurred like this or not."""


@pytest.fixture(scope="module")
def own_samples(photographs: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The same model, calibrated on its samples."""
    from glowserve_export.recalibration import recalibrate

    program("prometheus")
    data = tmp_path_factory.mktemp("samples") / "samples.npz"
    np.savez(data, images=samples(photographs, FRESH, seed=0))
    return recalibrate(photographs, str(data), device="cpu", say=print)[0]


def samples(bundle: Bundle, n: int, seed: int) -> UInt8Array:
    """The first n samples of a seed, at temperature 1."""
    with glowserve.open(bundle.path, device="cpu") as client:
        return client.sample(n, seed=seed).images


def test_unchanged_images_raise_no_alarm_and_blurred_ones_do(
    photographs: Bundle, own_samples: Bundle, shared_data: Path, serve: Serve, tmp_path: Path
) -> None:
    """Fresh samples of the model are what its calibration on samples takes for unchanged, exactly; photographs that
    were held out are what its own calibration does, as far as they were drawn alike."""
    from glowserve_training.data import DataConfig, load_set

    data = DataConfig(data=str(shared_data / "cifar10-jpeg" / "test.parquet"), image_size=32, channels=3)
    held_out = np.random.default_rng(0).permutation(load_set(data, 2000).images)[: 2 * IMAGES]
    traffic: dict[str, tuple[Bundle, UInt8Array]] = {
        **{f"control{i}": (own_samples, samples(own_samples, IMAGES, seed=1 + i)) for i in range(CONTROLS)},
        "blurred": (own_samples, blurred(samples(own_samples, IMAGES, seed=1 + CONTROLS), RADIUS)),
        "photographs": (photographs, held_out[:IMAGES]),
        "photographs-blurred": (photographs, blurred(held_out[IMAGES:], RADIUS)),
    }
    for name, (bundle, _) in traffic.items():
        shutil.copytree(bundle.path, tmp_path / "models" / name / "1")
    changed = {"blurred", "photographs-blurred"}
    with serve(models=tmp_path / "models") as service:
        port = urlsplit(service.metrics_url).port
        assert port is not None
        with prometheus(port, tmp_path) as url:
            wait_for(lambda: scrapes(url) >= 2)
            until = {
                name: images_until_an_alarm(service, name, images) for name, (_, images) in traffic.items()
            }
            seen = scrapes(url)
            wait_for(lambda: scrapes(url) >= seen + 3)
            firing = changed_models(url)
            largest = max(
                service.total("glowserve_drift_statistic", model=name)
                for name in traffic
                if name not in changed
            )
    print_table(
        f"traffic of {IMAGES} images of each model; blurred by {RADIUS} pixels",
        [
            ("models whose alert fires in Prometheus", ", ".join(sorted(firing))),
            *((f"images until the alarm of {name}", until[name]) for name in sorted(changed)),
            ("largest statistic of unchanged traffic (alarm: 1e9)", f"{largest:.3g}"),
        ],
    )  # fmt: skip
    assert firing == changed
    assert {name for name, images in until.items() if images} == changed


def images_until_an_alarm(service: Service, model: str, images: UInt8Array) -> int:
    """Scores images in batches; after how many the model's first alarm began, 0 if none did."""
    first = 0
    with glowserve.Client(service.target) as client:
        for start in range(0, len(images), BATCH):
            client.score(images[start : start + BATCH], model=model, scores=["anomaly_p_value"])
            if not first and service.total("glowserve_drift_alarms_total", model=model):
                first = start + BATCH
    return first

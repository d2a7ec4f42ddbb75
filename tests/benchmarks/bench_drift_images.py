"""After how many images of a folder or file the drift detector of a bundle raises an alarm: unchanged, and blurred.

    python tests/benchmarks/bench_drift_images.py models/cifar data/cifar10-jpeg/test.parquet

The images come in 20 random orders; no image comes twice. They must be images that the model was not trained on, fitted
to or calibrated on.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from glowserve_export.corruptions import blurred
from glowserve_export.evaluation import training_data
from glowserve_training.data import load_set

import glowserve
from glowserve.drift import DriftDetector, Float64Array
from glowserve.runtime.calibration import open_scorer
from glowserve.runtime.repository import newest_bundle

_ORDERS = 20
_RADII = (0.0, 0.3, 0.5, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("bundle", type=Path, metavar="REPOSITORY/MODEL")
    parser.add_argument("images", help="a folder, a .parquet or an .npz file")
    parser.add_argument("--most", type=int, default=2000, help="images (default: 2,000)")
    args = parser.parse_args()
    bundle = newest_bundle(args.bundle)
    oddness = open_scorer(bundle).oddness
    assert oddness is not None
    images = load_set(replace(training_data(bundle), data=args.images), args.most).images
    client = glowserve.open(args.bundle, device="cpu")
    print(f"{len(images)} images, {len(oddness)} calibration images, {_ORDERS} orders")
    print(f"{'blurred by':>12}{'p <= 0.01':>11}{'alarms':>8}{'images until then, median':>27}")
    for radius in _RADII:
        changed = blurred(images, radius) if radius else images
        p_values = client.score(changed, scores=["anomaly_p_value"]).anomaly_p_value
        assert p_values is not None
        until = [_images_until_an_alarm(oddness, p_values, seed) for seed in range(_ORDERS)]
        seen = [count for count in until if count is not None]
        share = f"{100 * (p_values <= 0.01).mean():.1f} %"
        median = f"{np.median(seen):.0f}" if seen else "-"
        print(f"{radius:>12g}{share:>11}{len(seen):>8}{median:>27}", flush=True)


def _images_until_an_alarm(oddness: Float64Array, p_values: Float64Array, seed: int) -> int | None:
    detector = DriftDetector(oddness)
    for i, p_value in enumerate(np.random.default_rng(seed).permutation(p_values), 1):
        if detector.update(p_value):
            return i
    return None


if __name__ == "__main__":
    main()

"""The smallest changes that the drift detector sees within so many images, by the size of its calibration.

    python tests/benchmarks/bench_drift.py

Oddness is normal. Each of 20 runs draws a calibration of its own, then images that have changed from the first one on.
A change is seen if 90 % of runs raise an alarm in time.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from glowserve.drift import DriftDetector, Float64Array

_CALIBRATION = (100, 400, 1250, 4000)
_WITHIN = (100, 300, 1000, 3000)
_RUNS = 20
_BATCH = 50

# From unchanged oddness [N] and uniform numbers [N] to oddness that has changed by the size of the change.
Change = Callable[[Float64Array, Float64Array, float], Float64Array]

_CHANGES: dict[str, tuple[Change, float]] = {
    "all images odder, in standard deviations of oddness": (lambda oddness, _, size: oddness + size, 5.0),
    "all images less odd, likewise": (lambda oddness, _, size: oddness - size, 5.0),
    "a share of images odder than any other, in per cent": (
        lambda oddness, uniform, size: np.where(uniform < size / 100, 100.0, oddness),
        100.0,
    ),
}


def main() -> None:
    print(f"smallest change seen by {_RUNS * 9 // 10} of {_RUNS} runs")
    for name, (change, largest) in _CHANGES.items():
        print(f"\n{name}\n{'n':>6} | " + " | ".join(f"{within:>6,}" for within in _WITHIN))
        for n in _CALIBRATION:
            row = [_smallest(change, largest, n, within) for within in _WITHIN]
            print(
                f"{n:>6,} | " + " | ".join(f"{size:6.2g}" if size else "  none" for size in row), flush=True
            )
    detector, batch = DriftDetector(np.arange(1250)), np.linspace(0.01, 1, 32)
    began = time.perf_counter()
    for _ in range(1000):
        detector.update(batch)
    print(f"\na batch of 32 images takes {1000 * (time.perf_counter() - began):.0f} µs")


def _smallest(change: Change, largest: float, n: int, within: int) -> float | None:
    """The smallest change that is seen, to a twentieth; None if the largest is not."""
    if not _seen(change, largest, n, within):
        return None
    low, high = largest / 1000, largest
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if _seen(change, middle, n, within) else (middle, high)
    return high


def _seen(change: Change, size: float, n: int, within: int) -> bool:
    misses = 0
    for seed in range(_RUNS):
        misses += not _alarms(change, size, n, within, seed)
        if misses > _RUNS // 10:
            return False
    return True


def _alarms(change: Change, size: float, n: int, within: int, seed: int) -> bool:
    generator = np.random.default_rng(seed)
    calibration = np.sort(generator.normal(size=n))
    detector = DriftDetector(calibration)
    for _ in range(within // _BATCH):
        oddness = change(generator.normal(size=_BATCH), generator.random(_BATCH), size)
        if detector.update((1 + n - np.searchsorted(calibration, oddness)) / (n + 1)):
            return True
    return False


if __name__ == "__main__":
    main()

"""What scores cost beside a likelihood, in this process: milliseconds of `score`, the median.

    taskset -c 0 python tests/benchmarks/bench_scores.py models/cifar out/cifar/held_out.npz

The second argument has the images that a training run held out. Run it on a quiet machine; taskset leaves it one core.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np

import glowserve

_BATCHES, _RUNS = (1, 32), 31
_ASKED: dict[str, list[str]] = {
    "nothing else": [],
    "anomaly_p_value": ["anomaly_p_value"],
    "complexity_bits_per_dim": ["complexity_bits_per_dim"],
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("held_out", type=Path, help="held_out.npz of the training run")
    args = parser.parse_args()
    with np.load(args.held_out) as file:
        images = file["test"][: max(_BATCHES)]
    print(f"{'batch':<8}" + "".join(f"{name:<26}" for name in _ASKED))
    with glowserve.open(args.bundle, device="cpu") as client:
        for n in _BATCHES:
            seconds: dict[str, list[float]] = {name: [] for name in _ASKED}
            for _ in range(_RUNS):  # they take turns
                for name, scores in _ASKED.items():
                    began = time.perf_counter()
                    client.score(images[:n], scores=scores)
                    seconds[name].append(time.perf_counter() - began)
            medians = [1e3 * statistics.median(times) for times in seconds.values()]
            shown = [f"{each:.2f} ms ({each / medians[0] - 1:+.1%})" for each in medians]
            print(f"{n:<8}" + "".join(f"{text:<26}" for text in shown))


if __name__ == "__main__":
    main()

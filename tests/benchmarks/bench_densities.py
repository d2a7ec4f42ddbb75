"""Compares what the oddness of an image may be computed from, on sets of images that do not belong.

    python tests/benchmarks/bench_densities.py models/cifar out/against/cifar/sets

The second argument is the folder of sets that out_of_distribution.py wrote. A second table has the sets of
further_sets.py, made to test the choice. The mixture takes the sizes of lossless WebP files, and the others do not. The
AUROC of 500 and 1,000 images has a standard error of 0.01 or less.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

import numpy as np
from further_sets import further_sets
from glowserve_export.density import fit_density
from glowserve_export.detection import auroc
from glowserve_export.evaluation import EvaluatedBundle, training_data
from glowserve_export.held_out import held_out_of_bundle
from glowserve_training.data import DataConfig, load_set
from sklearn.mixture import GaussianMixture

from glowserve.images import UInt8Array
from glowserve.likelihood import bits_per_dim
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.randomness import DEFAULT_SEED, dequantization_noise
from glowserve.runtime.repository import Bundle, newest_bundle
from glowserve.scores import Scorer
from glowserve.scores.parts import Parts, concatenated

_BATCH = 50
_NAMES = ("levels", "channels of latents", "contrasts", "likelihood beyond contrasts")


@dataclass(frozen=True)
class Measured:
    """What is known of N images."""

    parts: Parts
    complexity: np.ndarray
    """The size of a lossless file in bits/dim, [N]."""


Choice = Callable[[Measured], np.ndarray]
"""Oddness, [N]."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="REPOSITORY/MODEL")
    parser.add_argument("sets", type=Path)
    parser.add_argument("--data", help="data to take held-out images from (default: the training data)")
    parser.add_argument("--images", type=int, default=500, help="of each set, at most (default: 500)")
    args = parser.parse_args()
    bundle = newest_bundle(args.bundle)
    measure = partial(measured, bundle, Engine(bundle, RuntimeConfig(device="cpu")), Scorer(bundle.manifest))
    model = EvaluatedBundle(bundle, device="cpu")
    _, held_out = held_out_of_bundle(bundle, model, args.data, partial(print, file=sys.stderr))
    fitting, test = measure(held_out.validation), measure(held_out.test)
    choices = all_choices(fitting, bundle.manifest.image.latent_size)
    preparation = training_data(bundle).preparation
    size, channels = held_out.test.shape[2:]
    stored = {}
    for folder in sorted(args.sets.iterdir()):
        config = DataConfig(data=str(folder), image_size=size, channels=channels, preparation=preparation)
        stored[folder.name] = measure(load_set(config, args.images).images)
    print_table("sets", choices, test, stored)
    others = further_sets(held_out.test[: args.images])
    print_table("further sets", choices, test, {name: measure(images) for name, images in others})


def measured(bundle: Bundle, engine: Engine, scorer: Scorer, images: UInt8Array) -> Measured:
    """Measures images, uint8 [N, H, W, C]."""
    found = []
    for first in range(0, len(images), _BATCH):
        batch = np.ascontiguousarray(images[first : first + _BATCH])
        forward = engine.forward(batch, dequantization_noise(DEFAULT_SEED, batch))
        found.append(scorer.parts(forward, batch))
    return Measured(concatenated(found), scorer.complexity(np.ascontiguousarray(images)))


def all_choices(fitting: Measured, dimensions: int) -> Mapping[str, Choice]:
    """The choices by name; the first is what is served."""
    fitted = fit_density(fitting.parts, dimensions)

    def tails(images: Measured) -> np.ndarray:
        """Minus the log-probability of each statistic, [N, 4]."""
        statistics = fitted.statistics(images.parts, dimensions)
        return np.where(
            images.parts.finite[:, None], np.logaddexp(0, (statistics - fitted.median) / fitted.scale), np.inf
        )

    def served_with(n: int) -> Choice:
        few = Parts(**{each.name: getattr(fitting.parts, each.name)[:n] for each in fields(Parts)})
        density = fit_density(few, dimensions)
        return lambda images: density.oddness(images.parts, dimensions)

    kept = range(len(_NAMES))
    return {
        "as served": lambda images: fitted.oddness(images.parts, dimensions),
        "the largest of the four": lambda images: tails(images).max(axis=1),
        **{
            f"without {name}": lambda images, i=i: tails(images)[:, [j for j in kept if j != i]].sum(axis=1)
            for i, name in enumerate(_NAMES)
        },
        **{f"{name} alone": lambda images, i=i: tails(images)[:, i] for i, name in enumerate(_NAMES)},
        "bits/dim, two-sided": two_sided(fitting, dimensions),
        "4 Gaussians of log-density, log-determinant, WebP": mixture(fitting, dimensions),
        "as served, fitted to 100 images": served_with(100),
        "as served, fitted to 20 images": served_with(20),
    }


def two_sided(fitting: Measured, dimensions: int) -> Choice:
    """How far the bits/dim of an image are from the median."""
    median = np.median(bits_per_dim(fitting.parts.log_likelihood, dimensions))
    return lambda images: _odd(np.abs(bits_per_dim(images.parts.log_likelihood, dimensions) - median))


def mixture(fitting: Measured, dimensions: int) -> Choice:
    """The density of three numbers that are sums over all levels, or of the file."""

    def features(images: Measured) -> np.ndarray:
        sums = images.parts.features(dimensions)[:, :2]
        return np.concatenate([sums, images.complexity[:, None]], axis=1)

    known = features(fitting)
    centre, scale = known.mean(axis=0), known.std(axis=0)
    model = GaussianMixture(4, reg_covar=1e-2, n_init=5, random_state=0).fit((known - centre) / scale)

    def oddness(images: Measured) -> np.ndarray:
        standard = (features(images) - centre) / scale
        finite = np.isfinite(standard).all(axis=1)
        return np.where(finite, -model.score_samples(np.where(finite[:, None], standard, 0)), np.inf)

    return oddness


def print_table(
    title: str, choices: Mapping[str, Choice], test: Measured, sets: Mapping[str, Measured]
) -> None:
    """Prints the mean AUROC of each choice, the worst ones, and how many are below 0.9."""
    print(f"\n{title + f' ({len(sets)})':<52}{'mean':<8}{'below 0.9':<12}worst")
    for name, choice in choices.items():
        ours = choice(test)
        figures = {each: auroc(ours, choice(images)) for each, images in sets.items()}
        worst = sorted(figures, key=lambda each: figures[each])[:4]
        below = sum(figure < 0.9 for figure in figures.values())
        shown = ", ".join(f"{each} {figures[each]:.2f}" for each in worst)
        print(f"{name:<52}{np.mean(list(figures.values())):<8.3f}{below:<12}{shown}")


def _odd(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.inf)


if __name__ == "__main__":
    main()

"""What each choice of the densities of classes is worth: the same small model of digits, trained with each of them.

    python tests/benchmarks/class_priors.py

It prints bits/dim of log p(x) and the share of images whose most probable class is right, on 200 validation images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from glowserve_training.data import load_images
from glowserve_training.data.batches import StepLoader
from glowserve_training.evaluation import EvaluatedGlow, measure_likelihood
from glowserve_training.layers.classes import MEAN_FACTOR, ClassPriors
from glowserve_training.model import Glow
from glowserve_training.presets import run_config
from torch import Tensor

_RATE, _WARM_UP = 4e-3, 60
_PLAIN = {"preprocessing": "centre", "checkerboards": 0, "dequantization": "uniform"}


@dataclass(frozen=True)
class Choice:
    """Another density of the classes than the one that models have."""

    by_channel: bool = False
    """Whether a channel has one mean and one scale, and not each of its positions."""

    top_alone: bool = False
    """Whether the latents of lower levels are the same for all classes."""

    scales: bool = True
    """Whether classes have scales."""

    mean_factor: float = MEAN_FACTOR
    """Means are so many times their parameters."""

    cross_entropy: float = 0.0
    """The weight of -log p(c | x), in nats, beside bits/dim in the loss."""


CHOICES: dict[str, Choice | None] = {
    "no classes": None,
    "as models have it": Choice(),
    "top level alone": Choice(top_alone=True),
    "by channel": Choice(by_channel=True),
    "by channel, top level alone": Choice(by_channel=True, top_alone=True),
    "means alone": Choice(scales=False),
    "means are their parameters": Choice(mean_factor=1.0),
    "with cross-entropy": Choice(cross_entropy=0.1),
}


class ChosenPriors(ClassPriors):
    """The densities of a choice.

    Args:
        choice: the choice.
        classes: K.
        shapes: [C, H, W] of each level's latents.
    """

    def __init__(self, choice: Choice, classes: int, shapes: list[tuple[int, int, int]]) -> None:
        super().__init__(classes, sum(math.prod(shape) for shape in shapes))
        self._choice, self._shapes = choice, shapes

    def means(self) -> Tensor:
        """See `ClassPriors`."""
        return self._chosen(self._choice.mean_factor * self.mean)

    def log_scales(self) -> Tensor:
        """See `ClassPriors`."""
        return self._chosen(super().log_scales() * self._choice.scales)

    def _chosen(self, values: Tensor) -> Tensor:
        parts = list(values.split([math.prod(shape) for shape in self._shapes], dim=1))
        if self._choice.by_channel:
            planes = [part.unflatten(1, shape) for part, shape in zip(parts, self._shapes, strict=True)]
            parts = [plane[..., :1, :1].expand_as(plane).flatten(1) for plane in planes]
        if self._choice.top_alone:
            parts[:-1] = [part * 0 for part in parts[:-1]]
        return torch.cat(parts, dim=1)


def main() -> None:
    """Trains and prints."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    print(f"{'choice':<30}{'bits/dim':>10}{'accuracy':>10}")
    for name, choice in CHOICES.items():
        bits, accuracy = _measured(choice, args.steps)
        right = "-" if choice is None else f"{accuracy:.1%}"
        print(f"{name:<30}{bits:>10.3f}{right:>10}", flush=True)


def _measured(choice: Choice | None, steps: int) -> tuple[float, float]:
    """Bits/dim and accuracy after so many steps."""
    torch.manual_seed(0)
    config = run_config("digits", conditional=True, steps=steps, steps_per_level=4, width=16, **_PLAIN)
    images = load_images(config.data)
    assert images.train_labels is not None
    train, labels = images.train[:-200], images.train_labels[:-200]
    model = Glow(config.model)
    if choice is None:
        model.class_priors = None
    else:
        model.class_priors = ChosenPriors(choice, len(config.data.classes), model.latent_shapes())
        model.class_priors.set_shares(torch.from_numpy(labels))
    loader = StepLoader(train, batch_size=32, steps=steps, seed=0, labels=labels if choice else None)
    _train(model, loader, steps, _loss(model, choice))
    evaluated, held_out = EvaluatedGlow(model.eval()), images.train[-200:]
    bits = measure_likelihood(evaluated, held_out).bits_per_dim
    if choice is None:
        return bits, math.nan
    return bits, float((evaluated.classify(held_out) == images.train_labels[-200:]).mean())


def _loss(model: Glow, choice: Choice | None) -> Callable[..., Tensor]:
    per_bit = model.config.dimensions * math.log(2)

    def loss(*batch: Tensor) -> Tensor:
        bits = -model.log_prob(*batch).mean() / per_bit
        if choice is None or not choice.cross_entropy:
            return bits
        return bits + choice.cross_entropy * F.nll_loss(model.log_posterior(*batch[:2]), batch[2])

    return loss


def _train(model: Glow, loader: StepLoader, steps: int, loss: Callable[..., Tensor]) -> None:
    """Adam with a linear warm-up and a cosine."""
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    with torch.no_grad():
        model.log_prob(*loader.dataset[0])  # initializes the actnorms
    for step, batch in enumerate(loader):
        falling = 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = _RATE * min(1.0, (step + 1) / _WARM_UP) * falling
        optimizer.zero_grad()
        loss(*batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        optimizer.step()


if __name__ == "__main__":
    main()

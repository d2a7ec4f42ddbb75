"""How many of a model's samples are finite, and how many of them the flow leads back to the latent that they came from.

    python tests/benchmarks/bench_samples.py out/mnist/model.ckpt out/mnist/models/mnist/1

Samples are drawn from the bundle, as a service draws them, at temperature 1 and 0.7. The way back is that of the
checkpoint in float32: latent to the flow's input and to the latent again, without rounding to pixels. A latent has come
back if no entry is off by more than 0.01.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.model import Glow

import glowserve

_TEMPERATURES = (1.0, 0.7)
_CLOSE = 0.01
_BATCH = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="its export, MODEL/VERSION/")
    parser.add_argument("--samples", type=int, default=10_000)
    parser.add_argument("--led-back", type=int, default=1000, help="how many go the way back")
    args = parser.parse_args()
    model = load_checkpoint(args.checkpoint).model
    print(f"{'temperature':>11}{'samples':>9}{'not finite':>12}{'led back':>10}{'of':>7}{'worst':>10}")
    for temperature in _TEMPERATURES:
        with glowserve.open(args.bundle, device="cpu") as client:
            drawn = client.sample(args.samples, temperature=temperature, seed=0)
        errors = _errors(model, args.led_back, temperature)
        back = int((errors <= _CLOSE).sum())
        print(
            f"{temperature:>11}{args.samples:>9}{len(drawn.not_finite):>12}{back:>10}{len(errors):>7}"
            f"{float(errors.max()):>10.1e}"
        )


@torch.no_grad()
def _errors(model: Glow, n: int, temperature: float) -> torch.Tensor:
    """The largest error of each latent after the way to the image and back, [n]; infinity if not finite."""
    generator = torch.Generator().manual_seed(0)
    errors = []
    for start in range(0, n, _BATCH):
        shape = (min(_BATCH, n - start), model.config.dimensions)
        latent = temperature * torch.randn(shape, generator=generator)
        back, _ = model(model.inverse(latent)[0])
        errors.append((back - latent).abs().amax(1).nan_to_num(nan=torch.inf))
    return torch.cat(errors)


if __name__ == "__main__":
    main()

"""The demo, from top to bottom: train, export, serve, score, sample, encode and decode, stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from glowserve_export.bundle import export
from glowserve_export.source import trained_here
from glowserve_training.data import load_held_out
from glowserve_training.directory import RunDirectory
from glowserve_training.presets import run_config
from glowserve_training.run import train
from sklearn.metrics import roc_auc_score

import glowserve
from glowserve.cli.proof import proof_table
from glowserve.demo.pictures import draw_scores
from glowserve.demo.service import running_service
from glowserve.demo.strangers import strangers
from glowserve.images import UInt8Array, grid

_MODEL = "digits"
# Digits are few: with more, held-out ones get no likelier.
_STEPS = 600
_TEMPERATURE = 0.7
_SAMPLES = 64
_STRIP = 9  # images in a row of interpolation.png
_ROWS = 4


def run_demo(out: Path, *, steps: int | None = None, say: Callable[[str], None] = print) -> None:
    """Runs the demo.

    Args:
        out: where the run, the bundle and the pictures are left.
        steps: of training.
        say: told of each stage and its results.
    """
    began = time.monotonic()
    config = run_config("digits", steps=steps or _STEPS)
    model = config.model
    say(f"[1/5] training Glow on scikit-learn's handwritten digits, 8 x 8 grey in {model.n_bits} bits")
    say(
        f"      {model.levels} levels of {model.steps_per_level} steps of flow, {config.steps} steps of training"
    )
    if RunDirectory(out / "run").result.exists():
        say(f"      {out / 'run'} holds a finished run: nothing to do")
    checkpoint = train(config, out / "run")

    say("\n[2/5] exporting to ONNX")
    bundle = export(trained_here(checkpoint), out / "models" / _MODEL, say=lambda text: say(f"      {text}"))
    say(proof_table(bundle.manifest))

    say("\n[3/5] starting the service")
    digits = load_held_out(config.data).test
    with (
        running_service(out / "models", out / "service.log") as address,
        glowserve.Client(address) as client,
    ):
        say(f"      {address} serves {', '.join(model.name for model in client.models())}")
        say("\n[4/5] scoring held-out digits, and things that are no digits")
        _score(client, digits, out / "scores.png", say)
        say("\n[5/5] sampling, encoding and decoding")
        _sample(client, out / "samples.png", say)
        _encode(client, digits, out / "interpolation.png", say)
    say(f"      the service has stopped; the demo took {time.monotonic() - began:.0f} s\n")
    say(_closing(out))


def _score(client: glowserve.Client, digits: UInt8Array, picture: Path, say: Callable[[str], None]) -> None:
    """A table: how likely each group is, and how well bits/dim alone tells it from digits."""
    groups = {"held-out digits": digits, **strangers(digits)}
    scores = {name: client.score(images) for name, images in groups.items()}
    familiar = scores["held-out digits"].bits_per_dim
    say(f"      {'':<16}{'images':>7}{'bits/dim':>10}{'percentile':>12}{'flagged':>9}{'AUROC':>7}")
    for name, score in scores.items():
        bits = score.bits_per_dim
        flagged = 100 * (score.percentile < 1).mean()
        area = "" if bits is familiar else f"{_auroc(familiar, bits):.3f}"
        say(
            f"      {name:<16}{len(score):>7}{np.median(bits):>10.2f}{np.median(score.percentile):>12.1f}"
            f"{flagged:>8.0f}%{area:>7}"
        )
    say("      bits/dim and percentile are medians. Flagged: less likely than 99 of 100 held-out digits.")
    say("      AUROC: how often a digit is likelier than one of these; 1 is always, 0.5 is chance.")
    draw_scores({name: score.bits_per_dim for name, score in scores.items()}, picture)


def _auroc(familiar: np.ndarray, strange: np.ndarray) -> float:
    bits = np.minimum(np.concatenate((familiar, strange)), np.finfo(np.float64).max)
    return float(roc_auc_score(np.repeat([0, 1], [len(familiar), len(strange)]), bits))


def _sample(client: glowserve.Client, picture: Path, say: Callable[[str], None]) -> None:
    samples = client.sample(_SAMPLES, temperature=_TEMPERATURE, seed=0)
    grid(samples.images, scale=6).save(picture)
    say(f"      drew {len(samples)} images at temperature {_TEMPERATURE} with seed {samples.seed}")


def _encode(client: glowserve.Client, digits: UInt8Array, picture: Path, say: Callable[[str], None]) -> None:
    """Encodes and decodes all digits, and draws the way from some to others through the latents."""
    encoded = client.encode(digits)
    exact = int((encoded.mismatched_values == 0).sum())
    same = int((client.decode(encoded.latents) == digits).all(axis=(1, 2, 3)).sum())
    say(
        f"      {exact} of {len(digits)} digits decode from their latents to the same pixels ({same} compared here)"
    )
    strips = [client.interpolate(digits[i], digits[_ROWS + i], steps=_STRIP) for i in range(_ROWS)]
    grid(np.concatenate(strips), _STRIP, scale=6).save(picture)


def _closing(out: Path) -> str:
    return f"""Look at
  {out}/samples.png        what the model thinks digits look like
  {out}/scores.png         bits/dim of digits and of the rest
  {out}/interpolation.png  from one digit to another, through the latents
  {out}/run/curve.png      bits/dim as training went on

Try next (in a shell where .venv/bin is on the PATH)
  glowserve serve --repository {out}/models
  glowserve sample --server localhost:8001 --n 100 --temperature 0.7 --out samples.png
  glowserve score --server localhost:8001 YOUR_IMAGE.png
  glowserve train --data FOLDER_OF_IMAGES --out runs/mine"""

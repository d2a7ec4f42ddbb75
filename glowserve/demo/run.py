"""The demo from start to end: trains, exports, serves, scores, and samples, encodes and decodes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
from glowserve_export.bundle import export
from glowserve_export.detection import auroc
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_training.config import RunConfig
from glowserve_training.data import load_held_out
from glowserve_training.directory import RunDirectory
from glowserve_training.presets import run_config

import glowserve
from glowserve.demo.out_of_distribution import out_of_distribution_images
from glowserve.demo.pictures import draw_scores
from glowserve.demo.service import running_service
from glowserve.grid import grid
from glowserve.images import UInt8Array
from glowserve.verification import verification_table

Float64Array = npt.NDArray[np.float64]

_MODEL = "digits"
# There are few training images: more steps do not make held-out digits likelier.
_STEPS = 600
_TEMPERATURE = 0.7
_FALSE_ALARM_RATE = 0.05
_SAMPLES = 64
# The images in a row of interpolation.png, and its rows.
_INTERPOLATION_STEPS = 9
_INTERPOLATIONS = 4


def run_demo(out: Path, *, steps: int | None = None, say: Callable[[str], None] = print) -> None:
    """Runs the demo.

    Args:
        out: the folder for the run, the bundle and the pictures.
        steps: of training; None for enough to draw good digits.
        say: called with the text of each stage.
    """
    began = time.monotonic()
    config = run_config("digits", steps=steps or _STEPS)
    model = config.model
    say(f"[1/5] training Glow on scikit-learn's handwritten digits, 8 x 8 grey in {model.n_bits} bits")
    say(
        f"      {model.levels} levels of {model.steps_per_level} steps of flow, {config.steps} training steps"
    )
    checkpoint = _trained(config, RunDirectory(out / "run"), say)

    say("\n[2/5] exporting to ONNX")
    source = load_glowserve_checkpoint(checkpoint)
    bundle = export(source, out / "models" / _MODEL, say=lambda text: say(f"      {text}"))
    say(verification_table(bundle.manifest))

    say("\n[3/5] starting the service")
    digits = load_held_out(config.data).test
    with (
        running_service(out / "models", out / "service.log") as address,
        glowserve.Client(address) as client,
    ):
        say(f"      {address} serves {', '.join(model.name for model in client.models())}")
        say("\n[4/5] scoring held-out digits and out-of-distribution images")
        _score(client, digits, out / "scores.png", say)
        say("\n[5/5] sampling, encoding and decoding")
        _sample(client, out / "samples.png", say)
        _encode(client, digits, out / "interpolation.png", say)
    say(f"      the service has stopped; the demo took {time.monotonic() - began:.0f} s\n")
    say(_closing(out))


def _trained(config: RunConfig, run: RunDirectory, say: Callable[[str], None]) -> Path:
    """The checkpoint. Without training, nobody waits for the import of what trains."""
    run.check(config)
    if run.is_finished(config):
        say(f"      {run.path} contains a finished run; training is skipped")
        return run.result
    from glowserve_training.run import train

    return train(config, run.path)


def _score(client: glowserve.Client, digits: UInt8Array, picture: Path, say: Callable[[str], None]) -> None:
    """Prints the scores of each group of images, and how well bits/dim and the p-value separate it from digits."""
    in_distribution = "held-out digits"
    groups = {in_distribution: digits, **out_of_distribution_images(digits)}
    scores = {
        name: client.score(images, false_alarm_rate=_FALSE_ALARM_RATE) for name, images in groups.items()
    }
    say(f"      {'':<38}{'p-value,':>14}{'AUROC of':>19}")
    say(
        f"      {'':<16}{'images':>6}{'bits/dim':>9}{'percentile':>11}"
        f"{'median':>8}{'flagged':>8}{'bits/dim':>10}{'p-value':>8}"
    )
    normal = scores[in_distribution]
    for name, score in scores.items():
        line = f"      {name:<16}{len(score):>6}{np.median(score.bits_per_dim):>9.2f}"
        line += f"{np.median(score.percentile):>11.1f}{np.median(_p_values(score)):>8.3f}"
        line += f"{100 * (_p_values(score) <= _FALSE_ALARM_RATE).mean():>7.0f}%"
        if name != in_distribution:
            line += f"{auroc(normal.bits_per_dim, score.bits_per_dim):>10.3f}"
            line += f"{auroc(-_p_values(normal), -_p_values(score)):>8.3f}"
        say(line)
    say("      All groups but the first are out-of-distribution. bits/dim and percentile are medians.")
    say(
        f"      flagged: images with an anomaly_p_value of at most {_FALSE_ALARM_RATE:g}, the false-alarm rate."
    )
    say("      AUROC: the probability that an image of the group is odder than a digit; 0.5 is chance.")
    draw_scores({name: score.bits_per_dim for name, score in scores.items()}, picture)


def _p_values(scores: glowserve.Scores) -> Float64Array:
    assert scores.anomaly_p_value is not None  # it was asked for
    return scores.anomaly_p_value


def _sample(client: glowserve.Client, picture: Path, say: Callable[[str], None]) -> None:
    samples = client.sample(_SAMPLES, temperature=_TEMPERATURE, seed=0)
    grid(samples.images, scale=6).save(picture)
    say(f"      drew {len(samples)} images at temperature {_TEMPERATURE} with seed {samples.seed}")


def _encode(client: glowserve.Client, digits: UInt8Array, picture: Path, say: Callable[[str], None]) -> None:
    """Encodes and decodes all digits, and draws interpolations between some of them."""
    encoded = client.encode(digits)
    lossless = int((encoded.mismatched_values == 0).sum())
    same = int((client.decode(encoded.latents) == digits).all(axis=(1, 2, 3)).sum())
    say(
        f"      {lossless} of {len(digits)} digits decode from their latents to the same pixels, says the service; "
        f"{same} when compared here"
    )
    rows = [
        client.interpolate(digits[i], digits[_INTERPOLATIONS + i], steps=_INTERPOLATION_STEPS)
        for i in range(_INTERPOLATIONS)
    ]
    grid(np.concatenate(rows), _INTERPOLATION_STEPS, scale=6).save(picture)


def _closing(out: Path) -> str:
    return f"""Pictures
  {out}/samples.png        samples of the model
  {out}/scores.png         bits/dim of digits and of out-of-distribution images
  {out}/interpolation.png  interpolations between digits, through their latents
  {out}/run/curve.png      bits/dim during training

Try next (in a shell where .venv/bin is on the PATH)
  glowserve serve --repository {out}/models
  glowserve sample --server localhost:8001 --n 100 --temperature 0.7 --out samples.png
  glowserve score --server localhost:8001 YOUR_IMAGE.png --scores anomalous
  glowserve train --data FOLDER_OF_IMAGES --out runs/mine"""

"""`glowserve score --as-set`: one verdict on all pictures together."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict

from tqdm import tqdm

import glowserve
from glowserve.cli.failure import Failure
from glowserve.cli.picture_tables import open_picture
from glowserve.cli.pictures import GivenPictures, explanation
from glowserve.cli.target import open_target
from glowserve.client.inputs import read_image
from glowserve.images import UInt8Array
from glowserve.messages import preparation_of
from glowserve.output import counted, printable
from glowserve.pictures import Pictures
from glowserve.results import ImageError
from glowserve.scores.conformal import DEFAULT_FALSE_ALARM_RATE
from glowserve.scores.sets import EXCHANGES, FEWEST_IMAGES
from glowserve.v1.manifest_pb2 import Manifest

DIFFERS = 3
"""The exit code of `--fail-on-anomaly` if the set is not like the calibration images."""

_WITHOUT = {
    "scores": "a set has one score",
    "importance_samples": "p-values have one draw of noise",
    "seed": "p-values have the noise of the default seed",
    "class_name": "a set is compared with images of all classes",
    "out": "a set has no rows; --json prints its score",
    "worst": "a set has no rows",
    "engine": "it compares all images at once",
}


def score_set(args: argparse.Namespace) -> int:
    """Prints whether pictures, as a whole, come from the distribution of a model's calibration images.

    Pictures are prepared here as the service would prepare them, so that those that cannot be read are found one by
    one: they are reported and left out.

    Returns:
        3 if they do not and `--fail-on-anomaly` was given; else 1 if a file cannot be scored or a subfolder cannot be
        listed.

    Raises:
        Failure: an argument is wrong, a folder has no pictures, too few can be read, or the call failed.
    """
    asked = _rate(args)
    files = GivenPictures(args.files)
    with (
        open_target(args) as target,
        tqdm(total=len(files), desc="scoring", unit="", disable=None, leave=False) as bar,
    ):
        manifest = target.client.manifest(model=target.model)
        images = _Images(files, manifest, bar)
        try:
            score = target.client.score_set(images, model=manifest.model, version=manifest.version)
        except glowserve.RequestError as error:
            if images.readable >= FEWEST_IMAGES:
                raise
            few = (
                f"{images.readable} of {counted(len(files), 'file')} can be read; a set takes {FEWEST_IMAGES}"
            )
            raise Failure(few, 1) from error
    files.report_left_out()
    rate = max(DEFAULT_FALSE_ALARM_RATE, score.resolution) if asked is None else asked
    if rate < score.resolution:
        raise Failure(
            f"--false-alarm-rate is {rate:g}; {score.n} images beside {score.calibration_images} calibration images "
            f"permit {score.resolution:.3g} or more: take more images",
            2,
        )
    differs = score.p_value <= rate
    if args.json:
        print(json.dumps(_json(score) | {"set_false_alarm_rate": rate, "differs": differs}))
    else:
        print(*_lines(score, rate, differs), sep="\n")
    if failed := len(files) - score.n:
        print(f"glowserve: {failed} of {counted(len(files), 'file')} could not be scored", file=sys.stderr)
    if differs and args.fail_on_anomaly:
        return DIFFERS
    return 1 if failed or not files.complete else 0


def _rate(args: argparse.Namespace) -> float | None:
    """The false-alarm rate that is asked for, after a check of the flags.

    Raises:
        Failure: a flag makes no sense for a set.
    """
    for name, why in _WITHOUT.items():
        if getattr(args, name) not in (None, "", "local"):
            flag = name.removesuffix("_name").replace("_", "-")
            raise Failure(f"--as-set goes without --{flag}: {why}", 2)
    rate: float | None = args.false_alarm_rate
    finest = 1 / (EXCHANGES + 1)
    if rate is not None and not finest <= rate < 1:
        raise Failure(f"--false-alarm-rate is {rate:g}; of a set it must lie in {finest:g} to 1", 2)
    return rate


class _Images:
    """The images of files, prepared as a model takes them. Files that cannot be read are reported and left out.

    Args:
        files: their names.
        manifest: the model's.
        bar: counts files.
    """

    def __init__(self, files: Iterable[str], manifest: Manifest, bar: tqdm[object]) -> None:
        self._files, self._bar = files, bar
        image = manifest.image
        self._shape = image.height, image.width, image.channels
        self._preparation = preparation_of(manifest.preparation)
        self.readable = 0
        """How many could be read."""

    def __iter__(self) -> Iterator[UInt8Array]:
        for i, name in enumerate(self._files):
            try:
                image = self._prepared(i, name)
            except (OSError, ValueError) as error:
                text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                reason = explanation(ImageError(i, name, text.removeprefix(f"{name}: ")))
                tqdm.write(f"glowserve: {printable(f'{name}: {reason}')}", file=sys.stderr)
            else:
                self.readable += 1
                yield image
            self._bar.update()

    def _prepared(self, i: int, name: str) -> UInt8Array:
        found = read_image(i, open_picture(name))
        assert isinstance(found, tuple)  # a file
        image: UInt8Array = Pictures([found[0]], self._shape, self._preparation).decode()[0]
        return image


def _lines(score: glowserve.SetScore, rate: float, differs: bool) -> Iterator[str]:
    """The verdict, why, and what single images say."""
    verdict = "differ from" if differs else "do not differ from"
    finest = ", the smallest that is possible" if score.p_value <= score.resolution else ""
    yield (
        f"{score.n} images {verdict} {score.calibration_images} calibration images at a false-alarm rate of {rate:g}: "
        f"p = {score.p_value:.4g}{finest}"
    )
    shifts = ", ".join(
        f"{each.name} {each.shift:+.2f} (spread x {each.spread:.2f})" for each in score.features
    )
    yield f"in standard deviations, above 0 for more bits: {shifts}" if shifts else "no image is finite"
    not_finite = f", {score.not_finite} not finite" if score.not_finite else ""
    alone = f"{100 * score.anomalous:.3g} % of the images are anomalous by themselves"
    yield f"mean {score.bits_per_dim:.3f} bits/dim{not_finite}; {alone}, at a rate of {score.false_alarm_rate:.3g}"


def _json(score: glowserve.SetScore) -> dict[str, object]:
    """The score; JSON has no infinity, so numbers that are not finite are null."""

    def finite(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    values = {name: finite(value) for name, value in asdict(score).items()}
    features = [{name: finite(value) for name, value in asdict(each).items()} for each in score.features]
    return values | {"features": features}

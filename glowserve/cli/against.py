"""`glowserve evaluate BUNDLE --against DIR...`."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glowserve.cli.failure import Failure
from glowserve.output import printable

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from glowserve_export.against import Against, OutOfDistribution
    from glowserve_export.detection import Estimate
    from glowserve_export.false_alarms import FalseAlarms
    from glowserve_training.data import DataConfig, HeldOutImages

    import glowserve
    from glowserve.images import UInt8Array
    from glowserve.runtime.repository import Bundle
    from glowserve.scores import Scorer

# Images of a set, and of a call.
_MOST_IMAGES = 1000
_CALL_IMAGES = 256
_MINUS = "\N{MINUS SIGN}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of an evaluation against out-of-distribution images."""
    parser.add_argument(
        "--against",
        nargs="+",
        metavar="DIR",
        help="folders (or .npz or .parquet files) of images that do not belong: measures how well each score of a "
        "bundle separates them from test images, and how often it flags test images",
    )
    parser.add_argument(
        "--plots", type=Path, metavar="DIR", help="with --against: also draw the results there"
    )


def run(args: argparse.Namespace, first: Callable[[UInt8Array, str], UInt8Array]) -> int:
    """Measures a bundle.

    Args:
        args: the command's arguments.
        first: takes the images to measure from all test images; its second argument names the data.

    Raises:
        Failure: an argument does not fit, the images cannot be read, or the plots cannot be written.
    """
    from glowserve_export.against import evaluate_against
    from glowserve_export.errors import ExportError
    from glowserve_training.errors import TrainingError

    import glowserve
    from glowserve.client.errors import RequestError
    from glowserve.runtime.calibration import open_scorer
    from glowserve.runtime.errors import GlowserveError
    from glowserve.runtime.repository import newest_bundle

    _check(args)
    try:
        bundle = newest_bundle(args.source)
        data, held_out = _held_out(bundle, args)
        images = first(held_out.test, data)
        sets = _load_sets(args.against, _shape_of(bundle), args.images)
        if args.plots:
            args.plots.mkdir(parents=True, exist_ok=True)
        scorer = open_scorer(bundle)
        # p-values compare with the first of these images, of an old split or a large model not with all.
        known = scorer.calibration
        n = len(known.images) if known else len(bundle.manifest.calibration.bits_per_dim)
        calibration = held_out.for_percentiles[:n]
        total = len(images) + len(calibration) + sum(len(each.images) for each in sets)
        with (
            glowserve.open(bundle.path, device=args.device) as client,
            _Scoring(client, scorer, total) as score,
        ):
            result = evaluate_against(score, images, calibration, sets)
        _print(result, data, args)
        if args.plots:
            _draw(result, args.plots)
    except (ExportError, TrainingError, GlowserveError, RequestError, OSError) as error:
        raise Failure(error, 2) from error
    return 0


def _print(result: Against, data: str, args: argparse.Namespace) -> None:
    if args.json:
        named = {"source": str(args.source), "data": data, "split": args.split}
        print(json.dumps(named | _json(result, args.against)))
        return
    images = f"{result.images:,} test images of {data}, {result.calibration_images:,} calibration images"
    print(printable(f"{args.source}: {images}"))
    print("\n".join(_tables(result)))


def _check(args: argparse.Namespace) -> None:
    """Refuses arguments that say nothing about an evaluation against sets."""
    from glowserve.runtime.repository import has_bundle

    if not has_bundle(args.source):
        raise Failure(
            f"{args.source} is no bundle, and --against measures the scores that a bundle serves; give "
            "REPOSITORY/MODEL or REPOSITORY/MODEL/VERSION, which `glowserve export` writes",
            2,
        )
    if args.split != "test":
        raise Failure(
            f"split is {args.split!r}, and --against measures test images: on others, something was fitted or "
            "calibrated; leave --split out",
            2,
        )
    if args.importance_samples != 1:
        raise Failure(
            f"importance-samples is {args.importance_samples}, and --against measures scores as they are served, "
            "with one draw; leave --importance-samples out",
            2,
        )


def _held_out(bundle: Bundle, args: argparse.Namespace) -> tuple[str, HeldOutImages]:
    """The data, and the images of it that were held out."""
    from contextlib import closing

    from glowserve_export.evaluation import EvaluatedBundle
    from glowserve_export.held_out import held_out_of_bundle

    calibrated_on = bundle.manifest.calibration.data
    with closing(EvaluatedBundle(bundle, device=args.device)) as model:
        data, held_out = held_out_of_bundle(bundle, model, args.data, _warn)
        elsewhere = not args.data and data != calibrated_on
        if elsewhere and not model.is_calibrated_on(held_out.for_percentiles):
            _warn(
                f"warning: the bundle is calibrated on images of {calibrated_on!r}, and the test images are of "
                f"{data!r}: their false alarms do not show whether p-values are valid; give --data {calibrated_on!r}"
            )
    return data, held_out


def _shape_of(bundle: Bundle) -> DataConfig:
    from glowserve_export.evaluation import training_data

    return training_data(bundle)


def _load_sets(paths: Sequence[str], shape: DataConfig, most: int | None) -> list[OutOfDistribution]:
    """The sets, prepared to the model's shape. Sets of one name are called by their paths."""
    from dataclasses import replace

    from glowserve_export.against import OutOfDistribution
    from glowserve_training.data import load_set

    names = [_name(Path(path)) for path in paths]
    count, sets = Counter(names), []
    for path, name in zip(paths, names, strict=True):
        found = load_set(replace(shape, data=path), most or _MOST_IMAGES)
        if most is None and found.total > _MOST_IMAGES:
            _warn(f"{path}: {len(found.images):,} of {found.total:,} images, spread evenly, are measured")
        sets.append(OutOfDistribution(name if count[name] == 1 else path, found.images))
    return sets


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else path.stem


class _Scoring:
    """Scores images as they are served, and draws progress.

    Args:
        client: of the bundle.
        scorer: of the bundle.
        total: images.
    """

    def __init__(self, client: glowserve.Client, scorer: Scorer, total: int) -> None:
        from glowserve_export.against import ODD
        from tqdm import tqdm

        self._client, self._scorer = client, scorer
        self._names = [name for name in ODD if name in scorer.names]
        if left_out := [name for name in ODD if name not in scorer.names]:
            _warn(
                f"the bundle lacks the calibration that {', '.join(left_out)} needs, or was calibrated with another "
                "version of the WebP library: measured are the other scores; `glowserve calibrate` renews it"
            )
        self._bar = tqdm(total=total, desc="scoring", unit="", disable=None, leave=False)

    def __enter__(self) -> _Scoring:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def __call__(self, images: UInt8Array) -> Mapping[str, npt.NDArray[np.float64]]:
        import numpy as np

        parts: dict[str, list[npt.NDArray[np.float64]]] = {
            name: [] for name in ("bits_per_dim", *self._names)
        }
        for begin in range(0, len(images), _CALL_IMAGES):
            some = images[begin : begin + _CALL_IMAGES]
            scores = self._client.score(some, scores=self._names)
            for name, columns in parts.items():
                columns.append(getattr(scores, name))
            self._bar.update(len(some))
        found = {name: np.concatenate(columns) for name, columns in parts.items()}
        # A baseline is measured with the library that is here, whatever the bundle was calibrated with.
        return found | {"complexity_bits_per_dim": self._scorer.complexity(images)}


def _draw(result: Against, folder: Path) -> None:
    from glowserve_export.against_plots import draw_false_alarms, draw_separations

    draw_separations(result, folder / "separation.png")
    draw_false_alarms(result, folder / "false_alarms.png")
    _warn(f"wrote {folder / 'separation.png'} and {folder / 'false_alarms.png'}")


def _tables(result: Against) -> list[str]:
    """The results as lines of text."""
    width = max(map(len, (*result.detectors, *(f"{each.name} (1,000)" for each in result.sets)))) + 4
    lines = []
    for each in result.sets:
        title = f"{printable(each.name)} ({each.images:,})"
        lines += ["", f"{title:<{width}}{'AUROC':<22}{'AUPR':<22}FPR at 95 % TPR"]
        for detector, found in each.separations.items():
            figures = (_estimate(figure) for figure in (found.auroc, found.aupr, found.fpr))
            lines.append(f"  {detector:<{width - 2}}" + "".join(f"{text:<22}" for text in figures).rstrip())
    lines += ["", f"{'all sets':<{width}}{'mean AUROC':<13}{'worst AUROC':<28}beside the better baseline"]
    for detector in result.detectors:
        summary = result.summary(detector)
        worst, behind = summary.worst, summary.farthest_behind
        lowest = f"{worst.separations[detector].auroc.value:.3f} {printable(worst.name)}"
        lead = f"{behind.lead(detector):+.3f}".replace("-", _MINUS)
        lines.append(
            f"  {detector:<{width - 2}}{summary.mean_auroc:<13.3f}{lowest:<28}{lead} {printable(behind.name)}"
        )
    lines += ["", *_false_alarm_table(result, width), "", *_EXPLANATION]
    return lines


_EXPLANATION = textwrap.wrap(
    "AUROC: the probability that an image of the set is odder than a test image; 0.5 is chance. AUPR: average "
    "precision, with as many of either; 0.5 is chance. FPR: the share of test images that are flagged with the "
    "threshold that flags 95 % of the set. In parentheses: 95 % intervals. Beside the better baseline: AUROC less that "
    "of raw likelihood or complexity alone, whichever is higher, on the set where that is least. Raw likelihood: many "
    "bits/dim are odd; log_likelihood and percentile order images alike. Complexity alone: the size of a lossless "
    "file, too small or too large. False alarms: the share of test images whose p-value is up to the rate, and the "
    "interval that holds 95 of 100 such shares if test and calibration images are alike; *: outside. A score that is "
    "no p-value becomes one by the calibration images.",
    110,
)


def _false_alarm_table(result: Against, width: int) -> list[str]:
    rates = next(iter(result.false_alarms.values()))
    lines = [f"{'false alarms':<{width}}" + "".join(f"{_percent(rate.asked):<13}" for rate in rates).rstrip()]
    for detector in result.detectors:
        shares = "".join(f"{_share(rate):<13}" for rate in result.false_alarms[detector])
        lines.append(f"  {detector:<{width - 2}}{shares}".rstrip())
    intervals = "".join(f"{f'{100 * rate.low:.1f}-{100 * rate.high:.1f} %':<13}" for rate in rates)
    return [*lines, f"  {'95 % interval':<{width - 2}}{intervals}".rstrip()]


def _estimate(figure: Estimate) -> str:
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _share(rate: FalseAlarms) -> str:
    return f"{100 * rate.measured:.1f} %" + ("" if rate.inside else " *")


def _json(result: Against, paths: Sequence[str]) -> dict[str, Any]:
    return {
        "images": result.images,
        "calibration_images": result.calibration_images,
        "detectors": list(result.detectors),
        "sets": [
            {
                "name": each.name,
                "data": path,
                "images": each.images,
                "separations": {name: asdict(found) for name, found in each.separations.items()},
            }
            for path, each in zip(paths, result.sets, strict=True)
        ],
        "summary": {
            name: {
                "mean_auroc": (summary := result.summary(name)).mean_auroc,
                "worst_set": summary.worst.name,
                "worst_auroc": summary.worst.separations[name].auroc.value,
                "least_lead_set": summary.farthest_behind.name,
                "least_lead": summary.farthest_behind.lead(name),
            }
            for name in result.detectors
        },
        "false_alarms": {
            name: [asdict(rate) | {"inside": rate.inside} for rate in rates]
            for name, rates in result.false_alarms.items()
        },
    }


def _warn(text: str) -> None:
    print(f"glowserve: {printable(text)}", file=sys.stderr)

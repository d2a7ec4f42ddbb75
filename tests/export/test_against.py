"""Evaluation against sets that do not belong: baselines, directions, false alarms, plots."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glowserve_export.against import (
    BASELINES,
    COMPLEXITY_ALONE,
    ODD,
    RAW_LIKELIHOOD,
    Against,
    Columns,
    OutOfDistribution,
    evaluate_against,
)
from glowserve_export.against_plots import draw_false_alarms, draw_separations
from glowserve_export.corruptions import blurred, flat_colours
from glowserve_export.held_out import load_held_out
from glowserve_training.data import DataConfig, HeldOutImages
from PIL import Image

import glowserve
from glowserve.images import UInt8Array
from glowserve.scores import TABLE
from glowserve.scores.complexity import complexity_bits_per_dim

# Scores by which images are not ordered: flags, parts, and the error of another score.
_NO_ORDER = {"finite", "anomalous", "log_prior", "log_det", "log_posterior", "standard_error"}


@pytest.fixture(scope="module")
def held_out() -> HeldOutImages:
    return load_held_out(DataConfig(data="digits", image_size=8, channels=1))


@pytest.fixture(scope="module")
def sets(held_out: HeldOutImages) -> list[OutOfDistribution]:
    rng = np.random.default_rng(0)
    return [
        OutOfDistribution("noise", rng.integers(0, 256, held_out.test.shape, dtype=np.uint8)),
        OutOfDistribution("flat", flat_colours(held_out.test, rng)[:16]),
        OutOfDistribution("blurred", blurred(held_out.test, 1)),
    ]


@pytest.fixture(scope="module")
def result(embedded: glowserve.Client, held_out: HeldOutImages, sets: list[OutOfDistribution]) -> Against:
    def score(images: UInt8Array) -> Columns:
        bits, complexity = embedded.score(images).bits_per_dim, complexity_bits_per_dim(images, 4)
        return {
            "bits_per_dim": bits,
            "complexity_bits_per_dim": complexity,
            "bits_per_dim_minus_complexity": bits - complexity,
            "typicality_p_value": np.exp(-bits),
        }

    return evaluate_against(score, held_out.test, held_out.calibration, sets)


def test_every_score_of_the_table_is_measured_or_orders_images_as_a_baseline_does() -> None:
    known = {*ODD, *(name for names in BASELINES.values() for name in names), *_NO_ORDER}
    assert set(TABLE) == known


def test_the_baselines_come_first(result: Against) -> None:
    assert list(result.detectors) == [*BASELINES, "bits_per_dim_minus_complexity", "typicality_p_value"]
    assert [(each.name, each.images) for each in result.sets] == [
        ("noise", 179),
        ("flat", 16),
        ("blurred", 179),
    ]
    assert (result.images, result.calibration_images) == (179, 90)


def test_noise_is_found_by_all_that_know_the_model(result: Against) -> None:
    for name, found in result.sets[0].separations.items():
        if name != COMPLEXITY_ALONE:  # files of 8 x 8 pixels are mostly headers
            assert found.auroc.value > 0.95, name


def test_flat_images_are_found_by_their_size(result: Against) -> None:
    assert result.sets[1].separations[COMPLEXITY_ALONE].auroc.value > 0.95


def test_a_small_p_value_is_odd_and_orders_images_as_the_bits_that_it_is_made_from(result: Against) -> None:
    for each in result.sets:
        assert each.separations["typicality_p_value"].auroc == each.separations[RAW_LIKELIHOOD].auroc


def test_the_summary_names_the_worst_set_and_the_lead_over_the_better_baseline(result: Against) -> None:
    figures = {each.name: each.separations[RAW_LIKELIHOOD].auroc.value for each in result.sets}
    summary = result.summary(RAW_LIKELIHOOD)
    assert summary.mean_auroc == pytest.approx(np.mean(list(figures.values())))
    assert summary.worst.name == min(figures, key=lambda name: figures[name])
    leads = [each.lead(RAW_LIKELIHOOD) for each in result.sets]
    assert summary.farthest_behind.lead(RAW_LIKELIHOOD) == min(leads)
    assert all(max(each.lead(name) for name in BASELINES) == 0 for each in result.sets)


def test_test_images_are_flagged_as_often_as_asked(result: Against) -> None:
    for name in (RAW_LIKELIHOOD, COMPLEXITY_ALONE, "bits_per_dim_minus_complexity"):
        for rate in result.false_alarms[name]:
            # A twentieth of all intervals is missed; twice their width is not.
            middle, half = (rate.low + rate.high) / 2, (rate.high - rate.low) / 2
            assert abs(rate.measured - middle) <= 2 * half + 1e-9, (name, rate)


def test_images_without_a_finite_likelihood_are_the_oddest(held_out: HeldOutImages) -> None:
    def score(images: UInt8Array) -> Columns:
        bits = np.where(images.mean((1, 2, 3)) == 0, np.inf, 1.0)
        return {"bits_per_dim": bits, "complexity_bits_per_dim": complexity_bits_per_dim(images, 4)}

    black = OutOfDistribution("black", np.zeros_like(held_out.test))
    found = evaluate_against(score, held_out.test, held_out.calibration, [black])
    assert found.sets[0].separations[RAW_LIKELIHOOD].auroc.value == 1


def test_nothing_to_measure_is_refused(held_out: HeldOutImages, sets: list[OutOfDistribution]) -> None:
    none = held_out.test[:0]
    for arguments in (
        (held_out.test, held_out.calibration, []),
        (none, held_out.calibration, sets),
        (held_out.test, none, sets),
    ):
        with pytest.raises(ValueError, match="must each be one or more"):
            evaluate_against(lambda _: {}, *arguments)


def test_plots_are_drawn_whatever_the_sets_are_called(result: Against, tmp_path: Path) -> None:
    names = ("a$b_{c$", "line\nend", "\u96d1\u97f3")
    renamed = replace(
        result, sets=[replace(each, name=name) for each, name in zip(result.sets, names, strict=True)]
    )
    draw_separations(renamed, tmp_path / "separation.png")
    draw_false_alarms(renamed, tmp_path / "false_alarms.png")
    for file in ("separation.png", "false_alarms.png"):
        with Image.open(tmp_path / file) as picture:
            assert np.asarray(picture.convert("L")).std() > 10

"""AUROC, AUPR and FPR at 95 % TPR: beside scikit-learn's and SciPy's, and how often their intervals are right."""

from __future__ import annotations

import numpy as np
import pytest
from glowserve_export.detection import auroc, separation
from scipy.stats import beta, norm
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve


def samples(rng: np.random.Generator, n: int, m: int, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The oddness of n held-out and m out-of-distribution images."""
    ours, theirs = rng.normal(size=n), rng.normal(1, size=m)
    if kind == "ties":
        return ours.round(), theirs.round()
    if kind == "infinite":
        return np.where(ours > 1.5, np.inf, ours), np.where(theirs > 1, np.inf, theirs)
    return ours, theirs


@pytest.mark.parametrize("kind", ["plain", "ties", "infinite"])
@pytest.mark.parametrize(("n", "m"), [(200, 200), (300, 40), (1, 5), (5, 1), (1, 1)])
def test_the_figures_are_those_of_scikit_learn(rng: np.random.Generator, kind: str, n: int, m: int) -> None:
    ours, theirs = samples(rng, n, m, kind)
    found = separation(ours, theirs)
    finite = np.clip(np.concatenate((ours, theirs)), -1e9, 1e9)
    labels = np.repeat([0, 1], [n, m])
    weights = np.repeat([1 / n, 1 / m], [n, m])
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, finite), abs=1e-9)
    assert found.aupr.value == pytest.approx(
        average_precision_score(labels, finite, sample_weight=weights), abs=1e-9
    )
    fpr, tpr, _ = roc_curve(labels, finite, drop_intermediate=False)
    assert found.fpr.value == pytest.approx(fpr[tpr >= 0.95].min(), abs=1e-9)
    assert auroc(ours, theirs) == pytest.approx(found.auroc.value, abs=1e-9)


def test_a_higher_score_for_the_held_out_images_is_worse_than_chance() -> None:
    found = separation([2, 3, 4], [0, 1])
    assert (found.auroc.value, found.fpr.value) == (0, 1)
    assert found.aupr.value == pytest.approx((1 / 3 + 1 / 2) / 2)


def test_equal_scores_are_chance() -> None:
    found = separation(np.ones(50), np.ones(20))
    assert (found.auroc.value, found.aupr.value, found.fpr.value) == (0.5, 0.5, 1)
    assert found.auroc.low < 0.5 < found.auroc.high


def test_sixteen_separated_images_are_no_certainty() -> None:
    found = separation(np.zeros(1000), np.ones(16))
    assert (found.auroc.value, found.aupr.value, found.fpr.value) == (1, 1, 0)
    # One more image in sixteen could have been missed: Clopper and Pearson's limit for 16 of 16.
    assert found.auroc.low == pytest.approx(beta.ppf(0.025, 16, 1), abs=0.02)
    assert found.auroc.high == 1
    assert found.fpr.high == 1  # so few images cannot show which threshold finds 95 %


def test_the_interval_of_a_proportion_is_that_of_clopper_and_pearson() -> None:
    # All held-out images are equally odd, and 30 of 40 others are odder: AUROC is a proportion.
    found = separation(np.zeros(1000), np.repeat([1.0, -1.0], [30, 10]))
    assert found.auroc.value == 0.75
    assert found.auroc.low == pytest.approx(beta.ppf(0.025, 30, 11), abs=0.01)
    assert found.auroc.high == pytest.approx(beta.ppf(0.975, 31, 10), abs=0.01)


def test_intervals_contain_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    # Normal with distance 1: AUROC is Phi(1 / sqrt 2). FPR at 95 % TPR is 1 - Phi(1 - 1.645).
    truth = {"auroc": 0.7602499, "fpr": 0.7405}
    runs, inside = 200, dict.fromkeys(("auroc", "fpr"), 0)
    for _ in range(runs):
        found = separation(*samples(rng, 80, 60, "plain"))
        for name, value in truth.items():
            estimate = getattr(found, name)
            inside[name] += estimate.low <= value <= estimate.high
    # 180 of 200 is a thousandth's chance for 95 %.
    assert all(count >= 180 for count in inside.values()), inside


def test_the_intervals_are_the_same_in_every_run(rng: np.random.Generator) -> None:
    ours, theirs = samples(rng, 100, 100, "plain")
    assert separation(ours, theirs) == separation(ours, theirs)


def test_more_images_make_intervals_narrower() -> None:
    quantiles = norm.ppf((np.arange(3000) + 0.5) / 3000)
    found = separation(quantiles, quantiles + 1)
    assert found.auroc.low < 0.7602 < found.auroc.high
    assert found.auroc.high - found.auroc.low < 0.03


@pytest.mark.parametrize(("ours", "theirs"), [([], [1]), ([1], []), ([1, np.nan], [1]), ([1], [np.nan])])
def test_nothing_and_nan_are_refused(ours: list[float], theirs: list[float]) -> None:
    with pytest.raises(ValueError, match="NaN"):
        separation(ours, theirs)

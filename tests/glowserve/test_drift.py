"""The drift detector, in simulations: it keeps its promise about false alarms, and sees shifts in time.

Oddness is normal in all of them, and each run draws a calibration of its own.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from glowserve import drift
from glowserve.drift import BAND_ERROR, DriftDetector, Float64Array, band

Stream = Callable[[np.random.Generator, int], Float64Array]
LEVELS = np.array([0.01, 0.03, 0.1, 0.25, 0.5, 0.75, 0.9, 0.97])


def p_values(calibration: Float64Array, oddness: Float64Array) -> Float64Array:
    """Conformal p-values: (1 + how many of calibration are at least as odd) / (n + 1)."""
    least = np.searchsorted(np.sort(calibration), oddness)
    return (1 + len(calibration) - least) / (len(calibration) + 1)


def normal(mean: float = 0.0, deviation: float = 1.0) -> Stream:
    return lambda generator, n: generator.normal(mean, deviation, n)


def rounded(generator: np.random.Generator, n: int) -> Float64Array:
    """Oddness that takes few values, a third of the images having the same."""
    return np.where(generator.random(n) < 1 / 3, 0.5, np.round(generator.normal(size=n)))


def run_lengths(
    stream: Stream,
    *,
    n: int,
    horizon: int,
    runs: int,
    run_length: float = drift.RUN_LENGTH,
    null: Stream | None = None,
    batch: int = 50,
) -> Float64Array:
    """How many images each run takes until its alarm, at most the horizon, [runs]."""
    lengths = []
    for seed in range(runs):
        generator = np.random.default_rng(seed)
        calibration = (null or normal())(generator, n)
        detector = DriftDetector(calibration, run_length)
        for images in range(batch, horizon + 1, batch):
            if detector.update(p_values(calibration, stream(generator, batch))):
                lengths.append(images)
                break
        else:
            lengths.append(horizon)
    return np.array(lengths, float)


def with_band(monkeypatch: pytest.MonkeyPatch, bounds: str) -> None:
    """Breaks the detector: a band without width, as if n images told the distribution exactly."""

    def uniform(n: int, ranks: drift.Int64Array, error: float) -> tuple[Float64Array, Float64Array]:
        share = np.minimum(ranks / (n + 1), 1 - 1e-9)
        return share, share

    def mirrored(n: int, ranks: drift.Int64Array, error: float) -> tuple[Float64Array, Float64Array]:
        upper, lower = band(n, ranks, error)
        return lower, upper

    monkeypatch.setattr(drift, "band", {"uniform": uniform, "mirrored": mirrored}[bounds])


# The promise


@pytest.mark.parametrize("n", [1, 2, 19, 400, 4000])
def test_the_band_has_the_quantiles_of_the_beta_distribution(n: int) -> None:
    ranks = np.unique(np.clip(np.rint(LEVELS * (n + 1)), 1, n).astype(np.int64))
    upper, lower = band(n, ranks, BAND_ERROR)
    each = BAND_ERROR / (2 * len(ranks))
    np.testing.assert_allclose(upper, stats.beta.ppf(1 - each, ranks, n + 1 - ranks), rtol=1e-6)
    np.testing.assert_allclose(lower, stats.beta.ppf(each, ranks, n + 1 - ranks), rtol=1e-6)


def test_the_band_is_wrong_for_at_most_a_hundredth_of_calibrations() -> None:
    n, runs = 200, 20_000
    ranks = np.rint(LEVELS * (n + 1)).astype(np.int64)
    upper, lower = band(n, ranks, BAND_ERROR)
    shares = np.sort(np.random.default_rng(0).random((runs, n)), axis=1)[:, ranks - 1]
    wrong = ((shares > upper) | (shares < lower)).any(axis=1)
    deviation = np.sqrt(BAND_ERROR / runs)
    assert 0.5 * BAND_ERROR < wrong.mean() < BAND_ERROR + 3 * deviation


def test_the_band_is_nowhere_wider_than_that_of_dvoretzky_kiefer_and_wolfowitz() -> None:
    n = 1250
    ranks = np.rint(LEVELS * (n + 1)).astype(np.int64)
    upper, lower = band(n, ranks, BAND_ERROR)
    assert ((upper - lower) / 2 < 1.01 * np.sqrt(np.log(2 / BAND_ERROR) / (2 * n))).all()
    assert (upper - lower)[0] < 0.25 * (upper - lower)[4]  # at the ends it is much narrower


@pytest.mark.parametrize("null", [normal(), rounded], ids=["continuous", "ties"])
@pytest.mark.parametrize("n", [1, 19, 50, 1000])
def test_false_alarms_are_as_rare_as_promised_over_calibrations(n: int, null: Stream) -> None:
    lengths = run_lengths(null, n=n, horizon=8000, runs=30, run_length=2000, null=null)
    assert lengths.mean() >= 2000


def test_a_detector_that_takes_p_values_for_uniform_breaks_the_promise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with_band(monkeypatch, "uniform")
    lengths = run_lengths(normal(), n=50, horizon=8000, runs=30, run_length=2000)
    assert lengths.mean() < 2000


@pytest.mark.parametrize("side", ["upper", "lower"])
@pytest.mark.parametrize("level", [0, 4, 7])
def test_the_promise_holds_at_the_edge_of_the_band(level: int, side: str) -> None:
    """The calibration that the band just allows: nothing may be left of the run length to spare here."""
    n, run_length, batch = 100, 100.0, 1
    ranks = np.rint(LEVELS * (n + 1)).astype(np.int64)
    share = band(n, ranks, BAND_ERROR)[side == "lower"][level]
    lengths = []
    for seed in range(30):
        generator = np.random.default_rng(seed)
        detector = DriftDetector(np.arange(n), run_length)
        images = 0
        while not detector.changed and images < 500:
            # The other levels are where they belong: p-values are uniform on either side of the level.
            inside = generator.random(batch) < share
            edge = (ranks[level] + (side == "lower")) / (n + 1)
            uniform = generator.random(batch)
            detector.update(np.where(inside, edge * uniform, edge + (1 - edge) * uniform).clip(1e-9))
            images += batch
        lengths.append(images)
    assert np.mean(lengths) >= run_length


def test_unchanged_images_of_twenty_calibrations_raise_no_alarm() -> None:
    """At most one image in a hundred million is a false alarm, were the band exact: none in so few."""
    assert (run_lengths(normal(), n=1250, horizon=20_000, runs=20) == 20_000).all()


def test_bets_beyond_a_band_that_is_too_high_raise_false_alarms(monkeypatch: pytest.MonkeyPatch) -> None:
    with_band(monkeypatch, "mirrored")
    assert (run_lengths(normal(), n=1250, horizon=20_000, runs=10) < 20_000).all()


# Shifts


@pytest.mark.parametrize(
    ("stream", "n", "within"),
    [
        (normal(1), 100, 500),  # odder
        (normal(-1), 100, 500),  # more typical
        (normal(0.5), 1250, 1000),
        (normal(-0.5), 1250, 1000),
        (normal(0, 0.5), 1250, 1000),  # neither odd nor very typical images
        (normal(0, 2), 1250, 1000),  # more of both
        (lambda generator, n: np.where(generator.random(n) < 0.1, 4, generator.normal(size=n)), 1250, 1000),
        (normal(-0.3, 0), 1250, 200),  # one picture, all day
    ],
)
def test_a_shift_in_either_direction_is_seen_in_time(stream: Stream, n: int, within: int) -> None:
    lengths = run_lengths(stream, n=n, horizon=within + 50, runs=20)
    assert (lengths <= within).mean() >= 0.9


def test_a_shift_is_seen_as_soon_after_a_million_unchanged_images() -> None:
    generator = np.random.default_rng(0)
    calibration = generator.normal(size=1250)
    detector = DriftDetector(calibration)
    for _ in range(200):
        assert not detector.update(p_values(calibration, generator.normal(size=5000)))
    alarms = [detector.update(p_values(calibration, generator.normal(0.5, 1, 50))) for _ in range(20)]
    assert sum(alarms) == 1
    assert detector.lead.more


def test_the_lead_says_which_way_images_have_changed() -> None:
    generator = np.random.default_rng(0)
    calibration = generator.normal(size=1250)
    typical, anomalies = DriftDetector(calibration), DriftDetector(calibration)
    typical.update(p_values(calibration, generator.normal(-1, 1, 500)))
    assert not typical.lead.more
    mixed = np.where(generator.random(2000) < 0.2, 5, generator.normal(size=2000))
    anomalies.update(p_values(calibration, mixed))
    assert anomalies.lead.more
    assert anomalies.lead.level < 0.15


def test_an_alarm_lasts_as_long_as_the_change_and_ends_soon_after_it() -> None:
    generator = np.random.default_rng(0)
    calibration = generator.normal(size=1250)
    detector = DriftDetector(calibration)
    for _ in range(400):
        detector.update(p_values(calibration, generator.normal(0.5, 1, 50)))
    assert (detector.changed, detector.alarms) == (True, 1)
    detector.update(p_values(calibration, generator.normal(size=500)))
    assert not detector.changed
    detector.update(p_values(calibration, generator.normal(0.5, 1, 1000)))
    assert (detector.changed, detector.alarms) == (True, 2)


# State and input


def test_the_state_does_not_grow_and_nothing_overflows() -> None:
    calibration = np.arange(1250.0)
    for p in (1 / 1251, 0.5, 1.0):
        detector = DriftDetector(calibration)
        del detector._lock
        size = len(pickle.dumps(detector))
        detector._lock = threading.Lock()
        for _ in range(20):
            detector.update(np.full(10_000, p))
        assert np.isfinite(detector.statistic)
        assert detector.alarms == 1
        del detector._lock
        assert abs(len(pickle.dumps(detector)) - size) < 100


def test_the_order_within_a_batch_does_not_matter() -> None:
    values = np.random.default_rng(0).random(64) ** 2
    one, other = DriftDetector(np.arange(100)), DriftDetector(-np.arange(100.0))
    one.update(values)
    other.update(values[::-1])
    assert one.statistic == other.statistic > 0


def test_threads_may_share_a_detector() -> None:
    """Equal batches commute: whatever the turns, the outcome is that of one thread."""
    batch = np.linspace(0.002, 1, 50)
    alone, shared = DriftDetector(np.arange(500)), DriftDetector(np.arange(500))
    threads = [threading.Thread(target=lambda: [shared.update(batch) for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for _ in range(8 * 200):
        alone.update(batch)
    assert shared.statistic == alone.statistic
    assert shared.alarms == alone.alarms


def test_no_images_are_no_evidence() -> None:
    detector = DriftDetector([1.0])
    assert not detector.update([])
    assert (detector.statistic, detector.changed, detector.alarms) == (0, False, 0)


@pytest.mark.parametrize("wrong", [0.0, -0.1, 1.0001, np.nan, np.inf])
def test_what_is_no_p_value_is_refused_and_changes_nothing(wrong: float) -> None:
    detector = DriftDetector(np.arange(100))
    with pytest.raises(ValueError, match="above 0 and at most 1"):
        detector.update([0.5, wrong])
    assert detector.statistic == 0


@pytest.mark.parametrize(
    ("oddness", "run_length", "said"),
    [
        ([], 1e9, "one or more"),
        ([1, np.nan], 1e9, "NaN"),
        ([1], 1, "run_length"),
        ([1], np.inf, "run_length"),
    ],
)
def test_a_detector_without_calibration_or_sense_is_refused(
    oddness: list[float], run_length: float, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        DriftDetector(oddness, run_length)

"""Scores of images that are not finite, from one draw of noise and from several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from glowserve.scores import Asked, Calibration, Scorer
from glowserve.scores.complexity import fingerprint
from glowserve.scores.importance import log_mean_exp
from glowserve.v1.manifest_pb2 import Calibration as Percentiles
from glowserve.v1.manifest_pb2 import Canary, Flow, ImageSpec, Manifest
from tests.glowserve.scores.making import random_parts, standard_density

D, N = 64, 9


@dataclass
class Output:
    """The output of a forward graph."""

    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_det: np.ndarray
    latent: np.ndarray
    log_posterior: np.ndarray | None = None


@pytest.fixture
def scorer(rng: np.random.Generator) -> Scorer:
    canary = rng.integers(0, 256, (8, 8, 1), dtype=np.uint8)
    parts = random_parts(rng, N, levels=1)
    manifest = Manifest(
        image=ImageSpec(height=8, width=8, channels=1, n_bits=8, latent_size=D),
        flow=Flow(levels=1),
        canary=Canary(image=canary.tobytes()),
        calibration=Percentiles(bits_per_dim=[2.0, 3.0]),
    )
    calibration = Calibration(
        images=parts,
        complexity=np.full(N, 3.0),
        fitting=parts,
        density=standard_density(parts),
        codec=fingerprint(canary),
    )
    return Scorer(manifest, calibration)


def test_an_image_that_is_not_finite_is_odder_than_all(scorer: Scorer) -> None:
    assert scorer.calibration is not None
    usual = scorer.calibration.images
    nats = np.array([usual.log_likelihood[0], np.nan, np.inf, -np.inf, -100, -100], np.float32)
    prior = np.array([usual.log_prior[0, 0], np.nan, 1, -np.inf, np.inf, -101], np.float32)[:, None]
    det = np.array([usual.log_det[0, 0], 1, np.inf, 1, -np.inf, np.nan], np.float32)[:, None]
    asked = Asked(scores=frozenset({"anomaly_p_value", "anomalous", "typicality_p_value"}))
    output = Output(nats, prior, det, np.zeros((6, D), np.float32))
    repeated = [0] * 6
    parts = replace(
        scorer.parts(output, np.zeros((6, 8, 8, 1), np.uint8)),
        channels=usual.channels[repeated],
        contrasts=usual.contrasts[repeated],
    )
    scores = scorer.score(output, 0, asked, reference=output, p_values=scorer.p_values(parts))
    assert scores.anomaly_p_value is not None
    assert scores.typicality_p_value is not None
    assert scores.anomalous is not None
    assert scores.anomaly_p_value[0] > 1 / (N + 1)
    assert scores.anomaly_p_value[1:].tolist() == [1 / (N + 1)] * 5
    assert scores.anomalous[1:].all()
    assert scores.typicality_p_value[1:4].tolist() == [2 / (N + 1)] * 3
    assert scores.false_alarm_rate == 1 / (N + 1)


def test_a_draw_that_is_not_finite_makes_its_image_not_finite(scorer: Scorer) -> None:
    first = np.array([-100, -100, np.nan], np.float32)
    second = np.array([-101, np.inf, -100], np.float32)
    output = Output(first, *np.zeros((2, 3, 1), np.float32), np.zeros((3, D), np.float32))
    scores = scorer.score(
        output, 0, Asked(scores=frozenset({"standard_error"}), importance_samples=2), draws=[second]
    )
    assert scores.finite.tolist() == [True, False, False]
    assert scores.log_likelihood[1:].tolist() == [-np.inf] * 2
    assert scores.percentile[1:].tolist() == [0, 0]
    assert scores.standard_error is not None
    assert np.isfinite(scores.standard_error[0])
    assert scores.standard_error[1:].tolist() == [np.inf] * 2


def test_the_standard_error_is_how_much_the_estimate_varies(rng: np.random.Generator) -> None:
    draws = rng.normal(-1000, 0.3, (50, 4000)).astype(np.float32)
    finite, nats, error = log_mean_exp(list(draws))
    assert finite.all()
    assert nats.mean() == pytest.approx(-1000 + 0.3**2 / 2, abs=0.01)
    assert error.mean() == pytest.approx(nats.std(), rel=0.05)


def test_another_codec_is_noticed(scorer: Scorer) -> None:
    assert not scorer.codec_differs
    assert scorer.calibration is not None
    other = replace(scorer.calibration, codec=scorer.calibration.codec + 1)
    manifest = Manifest(
        image=ImageSpec(height=8, width=8, channels=1, n_bits=8, latent_size=D),
        canary=Canary(image=bytes(64)),
        calibration=Percentiles(bits_per_dim=[1.0]),
    )
    assert scorer.names - Scorer(manifest, other).names == {
        "complexity_bits_per_dim",
        "bits_per_dim_minus_complexity",
    }

"""Scores of images that are not finite, from one draw of noise and from several."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from glowserve.scores import Asked, Calibration, Scorer
from glowserve.scores.complexity import fingerprint
from glowserve.scores.density import Mixture
from glowserve.scores.importance import log_mean_exp
from glowserve.scores.parts import Parts
from glowserve.v1.manifest_pb2 import Calibration as Percentiles
from glowserve.v1.manifest_pb2 import Canary, ImageSpec, Manifest

D, N = 64, 9
MANIFEST = Manifest(
    image=ImageSpec(height=8, width=8, channels=1, n_bits=8, latent_size=D),
    canary=Canary(image=bytes(range(0, 256, 4))),
    calibration=Percentiles(bits_per_dim=[2.0, 3.0]),
)


@dataclass
class Output:
    """The output of a forward graph."""

    log_likelihood: np.ndarray
    log_prior: np.ndarray
    log_det: np.ndarray


@pytest.fixture
def scorer(rng: np.random.Generator) -> Scorer:
    canary = np.frombuffer(MANIFEST.canary.image, np.uint8).reshape(8, 8, 1)
    nats = rng.normal(-100, 1, N)
    parts = Parts(
        log_likelihood=nats,
        log_prior=nats[:, None] - 1,
        log_det=np.ones((N, 1)),
        complexity_bits_per_dim=np.full(N, 3.0),
    )
    mixture = Mixture(weights=np.ones(1), means=parts.features(D)[:1], whitening=np.eye(3)[None])
    calibration = Calibration(images=parts, fitting=parts, density=mixture, codec=fingerprint(canary))
    return Scorer(MANIFEST, calibration)


def test_an_image_that_is_not_finite_is_odder_than_all(scorer: Scorer) -> None:
    nats = np.array([-100, np.nan, np.inf, -np.inf, -100, -100], np.float32)
    prior = np.array([-101, np.nan, 1, -np.inf, np.inf, -101], np.float32)[:, None]
    det = np.array([1, 1, np.inf, 1, -np.inf, np.nan], np.float32)[:, None]
    asked = Asked(scores=frozenset({"anomaly_p_value", "anomalous", "typicality_p_value"}))
    output = Output(nats, prior, det)
    scores = scorer.score(output, 0, asked, reference=output, complexity=np.full(6, 3.0))
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
    output = Output(first, np.zeros((3, 1), np.float32), np.zeros((3, 1), np.float32))
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
    assert "anomalous" in scorer.names
    assert "anomalous" not in Scorer(MANIFEST, other).names
    assert "typicality_p_value" in Scorer(MANIFEST, other).names

"""EvaluatedBundle: its terms are the likelihood that is served, and agree with the checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from glowserve_export.evaluation import EvaluatedBundle, training_data
from glowserve_training.checkpoint import load_checkpoint
from glowserve_training.evaluation import EvaluatedGlow, evaluate

from glowserve.images import UInt8Array
from glowserve.runtime.engine import Engine
from glowserve.runtime.repository import Bundle


def test_terms_add_up_to_the_likelihood_that_is_served(
    bundle: Bundle, engine: Engine, digits: UInt8Array, rng: np.random.Generator
) -> None:
    noise = rng.random(digits.shape, np.float32)
    terms = EvaluatedBundle(bundle, device="cpu").terms(digits, noise)
    served = engine.forward(digits, noise).log_likelihood
    np.testing.assert_allclose(terms.total(), served, rtol=1e-5)


def test_bundle_and_checkpoint_are_measured_alike(
    bundle: Bundle, checkpoint: Path, digits: UInt8Array
) -> None:
    ours = evaluate(EvaluatedBundle(bundle, device="cpu"), digits, importance_samples=3)
    theirs = evaluate(EvaluatedGlow(load_checkpoint(checkpoint).model), digits, importance_samples=3)
    assert ours.bits_per_dim == pytest.approx(theirs.bits_per_dim, abs=1e-4)
    assert ours.standard_error == pytest.approx(theirs.standard_error, abs=1e-4)
    assert ours.constant_bits_per_dim == pytest.approx(theirs.constant_bits_per_dim, abs=1e-4)
    for our, their in zip(ours.levels, theirs.levels, strict=True):
        assert our.log_prior_bits_per_dim == pytest.approx(their.log_prior_bits_per_dim, abs=1e-4)
        assert our.log_det_bits_per_dim == pytest.approx(their.log_det_bits_per_dim, abs=1e-4)
    assert ours.round_trip.images_exact == theirs.round_trip.images_exact == len(digits)


def test_the_manifest_names_the_training_data(bundle: Bundle, checkpoint: Path) -> None:
    assert training_data(bundle) == load_checkpoint(checkpoint).data
    manifest = type(bundle.manifest)()
    manifest.CopyFrom(bundle.manifest)
    manifest.training.split_seed, manifest.preparation.background = 5, 7
    other = training_data(replace(bundle, manifest=manifest))
    assert (other.split_seed, other.preparation.background) == (5, 7)

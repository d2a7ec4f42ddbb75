"""Loads a version: opens its bundle in an engine, runs it at every batch size, and checks its canary."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from glowserve.runtime.attributes import Attributes, bundle_attributes
from glowserve.runtime.calibration import open_class_scorer, open_scorer
from glowserve.runtime.canary import check_canary, check_n_bits
from glowserve.runtime.config import bucket_sizes
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.randomness import ENCODING_NOISE
from glowserve.runtime.repository import Bundle, Fingerprint, fingerprint, open_bundle
from glowserve.runtime.sessions import Cancellation
from glowserve.scores import Scorer
from glowserve_service.allocator import trim
from glowserve_service.config import ServiceConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedModel:
    """A bundle in an engine, whose canary has passed."""

    bundle: Bundle
    engine: Engine
    scorer: Scorer
    class_scorer: Scorer | None
    attributes: Attributes
    fingerprint: Fingerprint
    """Of the files, before they were read."""

    def close(self) -> None:
        """Frees the engine. No run may follow."""
        self.engine.close()


def load_model(path: Path, config: ServiceConfig, cancellation: Cancellation | None = None) -> LoadedModel:
    """Loads the bundle in a VERSION folder, runs it at every batch size that it will get, and checks its canary.

    Args:
        path: the folder.
        config: the service's.
        cancellation: ends the load.

    Raises:
        BundleError: it is damaged, or does not compute what it did when it was exported.
        DeviceError: the device cannot be used.
    """
    began = time.monotonic()
    state = fingerprint(path)
    bundle = open_bundle(path)
    scorer, class_scorer = open_scorer(bundle), open_class_scorer(bundle)
    attributes = bundle_attributes(bundle)
    engine = Engine(bundle, config.runtime, cancellation)
    try:
        for size in sorted({1, config.max_batch_size, *padded_sizes(engine, config)}):
            _warm_up(engine, bundle, size)
        check_canary(engine, bundle)
        check_n_bits(engine, bundle)
    except BaseException:
        engine.close()
        raise
    trim()  # the allocator keeps what the content of the files took, and would keep as much for each model
    placed = ", ".join(f"{p.nodes} nodes of {p.graph} by {p.provider}" for p in engine.placements)
    if scorer.codec_differs:
        log.warning(
            "%s was exported with another version of the WebP library: scores of complexity are refused; `glowserve "
            "calibrate` writes a version that has them",
            path,
        )
    log.info("loaded %s on %s in %.2f s: %s", path, engine.device, time.monotonic() - began, placed)
    return LoadedModel(bundle, engine, scorer, class_scorer, attributes, state)


def padded_sizes(engine: Engine, config: ServiceConfig) -> tuple[int, ...]:
    """The sizes that batches are padded to. A GPU pays once for every new size, a CPU for every row."""
    return () if engine.device == "cpu" else bucket_sizes(config.max_batch_size)


def public_sentence(sentence: str, path: Path) -> str:
    """An error of a bundle as callers may read it: one line, with MODEL/VERSION in place of the folder's path."""
    return " ".join(sentence.replace(str(path), f"{path.parent.name}/{path.name}").split())


def _warm_up(engine: Engine, bundle: Bundle, size: int) -> None:
    images = np.zeros((size, *bundle.shape), np.uint8)
    noise = np.full(images.shape, ENCODING_NOISE, np.float32)
    try:
        engine.reverse(engine.forward(images, noise).latent)
    except Exception as error:  # ONNX Runtime has no public base class of its errors
        raise BundleError(f"bundle {bundle.path}: its first run failed: {error}") from error

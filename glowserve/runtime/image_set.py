"""GlowService.ScoreSet on any runner: keeps the features of a set's images, and compares them at the end.

protos/glowserve/v1/glow_service.proto explains the method.

Shapes: N images of a request, F features.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from glowserve import messages
from glowserve.results import SetScore
from glowserve.runtime import inputs, operations
from glowserve.runtime.asked import require
from glowserve.runtime.errors import InvalidRequestError
from glowserve.runtime.runner import Runner, Work
from glowserve.scores import Asked, Scorer
from glowserve.scores.sets import FEWEST_IMAGES, MAX_IMAGES, SetTest, differences
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.manifest_pb2 import Manifest

Float64Array = npt.NDArray[np.float64]
Compute = Callable[[Work[Any]], Awaitable[Any]]

_ASKED = Asked(scores=frozenset({"anomaly_p_value", "anomalous"}))
# As the size of work: enough that a service does it beside its event loop.
_LARGE = 2**20


@dataclass(frozen=True)
class SetPart:
    """What is kept of the images of one request."""

    features: Float64Array
    """[N, F]; not finite for an image whose log-likelihood is not."""

    bits_per_dim: float
    """The sum over the finite images."""

    not_finite: int
    """How many images are not finite."""

    anomalous: int
    """How many images are anomalous by themselves."""

    false_alarm_rate: float
    """At which they are."""


class ImageSet:
    """The set of one call. Several of its requests may be scored at once; they begin in their order."""

    def __init__(self) -> None:
        self._manifest: Manifest | None = None
        self._expected = self._n = self._not_finite = self._anomalous = 0
        self._features = bytearray()  # an array for each of many small requests would take more
        self._bits_per_dim = self._false_alarm_rate = 0.0
        self.scorer: Scorer | None = None
        """Of the model version that scores the set; None before the first request."""

    def select(self, spec: pb.ModelSpec) -> pb.ModelSpec:
        """The model of the next request: that of the first one.

        Raises:
            InvalidRequestError: it names another.
        """
        if self._manifest is None:
            return spec
        name, version = self._manifest.model, self._manifest.version
        for field, given, accepted in (
            ("name", spec.name, ("", name)),
            ("version", spec.version, (0, version)),
        ):
            if given not in accepted:
                shown = repr(given)[:128]
                raise InvalidRequestError(
                    f"model.{field} is {shown}; this set began with {name} version {version}: leave the field out, or "
                    "send another set",
                    f"model.{field}",
                )
        return pb.ModelSpec(name=name, version=version)

    async def score(self, runner: Runner, request: pb.ScoreSetRequest) -> SetPart:
        """Scores the images of a request.

        Raises:
            NotCalibratedError: the bundle has no calibration.
            GlowserveError: the request is malformed, or the runner refuses it.
        """
        if self.scorer is None:
            require("a set's p-value", _ASKED.needs, runner.bundle, runner.scorer)
            self.scorer, self._manifest = runner.scorer, runner.bundle.manifest
        images = inputs.image_source(request.images, runner.bundle, runner.limits)
        if self._expected + images.count > MAX_IMAGES:
            raise InvalidRequestError(
                f"images: {images.count} images after {self._expected}; a set has at most {MAX_IMAGES}: send a sample "
                "of it",
                "images",
            )
        self._expected += images.count
        runner.expect(images.count)
        scores, parts = await operations.score_with_parts(runner, images, _ASKED)
        assert scores.anomalous is not None
        assert scores.false_alarm_rate is not None
        return SetPart(
            features=parts.features(runner.bundle.manifest.image.latent_size),
            bits_per_dim=float(scores.bits_per_dim[scores.finite].sum()),
            not_finite=int(np.count_nonzero(~scores.finite)),
            anomalous=int(np.count_nonzero(scores.anomalous)),
            false_alarm_rate=scores.false_alarm_rate,
        )

    def add(self, part: SetPart) -> None:
        """Adds the images of a request to the set."""
        self._n += len(part.features)
        self._features += part.features.tobytes()
        self._bits_per_dim += part.bits_per_dim
        self._not_finite += part.not_finite
        self._anomalous += part.anomalous
        self._false_alarm_rate = part.false_alarm_rate

    async def response(self, compute: Compute) -> pb.ScoreSetResponse:
        """The response, when all images have been added.

        Args:
            compute: does CPU work, as `Runner.compute` does; several short pieces of it.

        Raises:
            InvalidRequestError: there are too few images.
        """
        if self._n < FEWEST_IMAGES or self._manifest is None or self.scorer is None:
            raise InvalidRequestError(
                f"images: the set has {self._n}; a set has {FEWEST_IMAGES} to {MAX_IMAGES}. Score a single image by "
                "its anomaly_p_value",
                "images",
            )
        calibration = self.scorer.calibration
        assert calibration is not None
        dimensions = self._manifest.image.latent_size
        features = np.frombuffer(self._features).reshape(self._n, -1)
        reference = calibration.images.features(dimensions)

        def begin() -> SetTest:
            return SetTest(features, reference, calibration.fitting.features(dimensions))

        test: SetTest = await compute(Work(begin, 1, _LARGE))
        while not await compute(Work(test.run, 1, _LARGE)):
            pass
        finite = self._n - self._not_finite
        score = SetScore(
            p_value=test.p_value,
            resolution=test.resolution,
            n=self._n,
            calibration_images=test.calibration_images,
            features=differences(features, reference),
            bits_per_dim=self._bits_per_dim / finite if finite else np.inf,
            not_finite=self._not_finite,
            anomalous=self._anomalous / self._n,
            false_alarm_rate=self._false_alarm_rate,
            model=self._manifest.model,
            version=self._manifest.version,
        )
        return messages.set_score_message(score)

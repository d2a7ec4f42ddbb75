"""From images to scores: the one way, whichever method asks."""

from __future__ import annotations

import numpy as np

from glowserve.images import UInt8Array
from glowserve.results import Scores
from glowserve.runtime.randomness import dequantization_noise
from glowserve_service.front.call import current
from glowserve_service.front.streams import Entrance
from glowserve_service.models.models import ServedModel
from glowserve_service.scheduling.cpu_pool import Preparer


async def score(
    images: UInt8Array,
    seed: int,
    model: ServedModel,
    preparer: Preparer,
    *,
    prepared: bool = False,
    admitted: bool = False,
    long: bool = False,
    entrance: Entrance | None = None,
) -> Scores:
    """Scores of images, uint8 [N, H, W, C].

    Args:
        images: of the model's shape.
        seed: of the dequantization noise.
        model: under which they are scored.
        preparer: where the noise is drawn.
        prepared: whether the preparer has accepted these images already, to read them.
        admitted: whether other images of the call have been accepted; for this and `long` see `Batcher.submit`.
        long: whether they are a part of more.
        entrance: which the parts go through, if there are more.

    Raises:
        GlowserveError: they are not scored.
    """
    noise = await preparer.run(
        dequantization_noise,
        seed,
        images,
        images=len(images),
        size=images.nbytes,
        admitted=prepared or admitted,
    )
    if entrance:
        await entrance.turn(first=not admitted)
    log_likelihood, _ = await model.forward(images, noise, admitted=admitted, long=long)
    scores = model.scorer.score(log_likelihood, seed)
    model.not_finite(current().method).inc(len(images) - int(np.count_nonzero(scores.finite)))
    return scores

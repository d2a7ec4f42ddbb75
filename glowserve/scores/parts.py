"""The parts of images: the numbers from which the oddness of an image is computed.

Shapes: N images, H W C, D = H * W * C, L levels, Q channels of latents, S contrasts, F features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from glowserve.likelihood import bits_per_dim
from glowserve.scores import channels, contrasts

Float64Array = npt.NDArray[np.float64]

FEATURES = ("log-density of the latents", "log-determinant", "contrast of neighbouring pixels")
"""The features of an image: its parts in short."""


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of N images, all with the noise of the default seed."""

    log_likelihood: Float64Array
    """In nats, [N]."""

    log_prior: Float64Array
    """The log-density of the latents of each level, in nats, [N, L]."""

    log_det: Float64Array
    """The log-determinants of each level that depend on the image, in nats, [N, L]."""

    channels: Float64Array
    """`channels.channel_statistics`, [N, 2 Q]."""

    contrasts: Float64Array
    """`contrasts.contrasts`, [N, S]."""

    def __len__(self) -> int:
        return len(self.log_likelihood)

    @property
    def finite(self) -> npt.NDArray[np.bool_]:
        """Whether all parts of an image are finite, [N]."""
        found = [np.isfinite(getattr(self, each.name)).reshape(len(self), -1) for each in fields(self)]
        return np.asarray(np.concatenate(found, axis=1).all(axis=1))

    def features(self, dimensions: int) -> Float64Array:
        """The features, [N, F]: the first two in bits for each value. Not finite for an image whose parts are not.

        Args:
            dimensions: D.
        """
        levels = self.log_prior.shape[1]
        finest = 3 * self.contrasts.shape[1] // (3 * levels + 1)
        with np.errstate(invalid="ignore"):  # levels may be infinite with opposite signs
            columns = (
                bits_per_dim(self.log_prior.sum(axis=1), dimensions),
                bits_per_dim(self.log_det.sum(axis=1), dimensions),
                self.contrasts[:, :finest].mean(axis=1),
            )
        return np.where(self.finite[:, None], np.stack(columns, axis=1), np.nan)


def concatenated(parts: Sequence[Parts]) -> Parts:
    """The parts of all images, in order. There is one or more of them."""
    return Parts(
        **{each.name: np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Parts)}
    )


def widths(image_channels: int, levels: int) -> Mapping[str, int]:
    """How many numbers of each part an image has, but for the log-likelihood.

    Args:
        image_channels: C.
        levels: L.
    """
    return {
        "log_prior": levels,
        "log_det": levels,
        "channels": channels.statistics_width(image_channels, levels),
        "contrasts": contrasts.width(image_channels, levels),
    }

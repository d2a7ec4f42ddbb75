"""Monotonic rational-quadratic splines (Gregory and Delbourgo 1982; Durkan et al. 2019, "Neural Spline Flows").

A spline maps [-B, B] to itself, and is the identity outside. A network predicts the heights of its K bins, and the
slopes at the K - 1 knots between them; at both ends the slope is 1. Unlike the paper's, bins are equally wide. So no
search is needed in forward direction, the network has a third fewer outputs, and slopes stay within `Spline.slopes`, so
that float32 keeps enough digits in both directions.

Shapes: K bins, A active channels; the network's output h is [N, (2K - 1) * A, H, W], heights first.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

# Between 1/3 and 3 lies the slope at a knot.
KNOT_SLOPE_BOUND = 3.0


class _Piece(NamedTuple):
    """The bin that a value lies in, in units in which the spline maps [-K/2, K/2] to itself. [N, A, H, W] each."""

    knot: Tensor
    """Its lower end."""

    start: Tensor
    """What the lower end is mapped to."""

    height: Tensor
    """Its height, which is its mean slope, too."""

    left: Tensor
    """The slope at its lower knot."""

    right: Tensor
    """The slope at its upper knot."""

    def log_slope(self, place: Tensor) -> Tensor:
        """The logarithm of the slope at a place in the bin (Durkan et al. 2019, equation 5)."""
        at = place - self.knot
        excess = self._excess(at)
        numerator = self.left + (self.right - self.left) * at - excess
        return (self.height.square() * numerator).log() - 2 * (self.height + excess).log()

    def value(self, place: Tensor) -> Tensor:
        """What a place in the bin is mapped to (equation 4)."""
        at = place - self.knot
        bend = (self.left - self.height) * at * (1 - at)
        return self.start + self.height * (self.height * at + bend) / (self.height + self._excess(at))

    def place(self, value: Tensor) -> Tensor:
        """The inverse of `value`: the root of a quadratic that stays exact where its leading term vanishes."""
        share = (value - self.start) / self.height
        excess = share * self._curvature()
        a, b = self.height - self.left + excess, self.left - excess
        scaled = 2 * self.height * share
        return self.knot + scaled / (b + (b.square() + 2 * scaled * a).clamp(min=0).sqrt())

    def _excess(self, at: Tensor) -> Tensor:
        return self._curvature() * at * (1 - at)

    def _curvature(self) -> Tensor:
        return self.left + self.right - 2 * self.height


class Spline(nn.Module):
    """A monotonic map of [-B, B] to itself; initialized, at h = 0, as the identity.

    Args:
        bins: K, at least 2.
        interval: B.
    """

    def __init__(self, bins: int, interval: float) -> None:
        super().__init__()
        self.bins, self.interval = bins, interval
        self.outputs = 2 * bins - 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The mapped values, and the logarithm of the slope at each, [N, A, H, W]."""
        heights, log_slopes = self._heights_and_log_slopes(h)
        place = self._in_bins(x)
        piece = _piece(heights, log_slopes, (place.detach() + self.bins / 2).long().clamp(0, self.bins - 1))
        return self._outside_same(x, piece.value(place), piece.log_slope(place))

    def inverse(self, y: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """The values before the map, and the logarithm of the inverse's slope at each, [N, A, H, W]."""
        heights, log_slopes = self._heights_and_log_slopes(h)
        value = self._in_bins(y)
        inner_knots = heights.cumsum(1)[:, :-1] - self.bins / 2
        piece = _piece(heights, log_slopes, (value[:, None] >= inner_knots).sum(1))
        place = piece.place(value)
        return self._outside_same(y, place, -piece.log_slope(place))

    def slopes(self) -> tuple[float, float]:
        """Bounds of the slope, whatever the network predicts: by default 1/100 and 9."""
        # The height of a bin lies between 1/K and (K + 1)/2. The slope is least in the middle of the lowest bin,
        # between the steepest knots; it is at most twice the height of the bin, or that of a knot.
        low = 1 / self.bins
        return 2 * low**2 / (low + KNOT_SLOPE_BOUND), max(self.bins + 1.0, KNOT_SLOPE_BOUND)

    def _heights_and_log_slopes(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The heights of bins, [N, K, A, H, W], which add up to K; log-slopes at knots, [N, K - 1, A, H, W]."""
        raw = torch.tanh(h.unflatten(1, (self.outputs, -1)))
        shares = raw[:, : self.bins] + (1 + 2 / self.bins)
        heights = shares * (self.bins / shares.sum(1, keepdim=True))
        return heights, math.log(KNOT_SLOPE_BOUND) * raw[:, self.bins :]

    def _in_bins(self, x: Tensor) -> Tensor:
        """Values of [-B, B] in [-K/2, K/2]; those outside at its ends. Around 0, no digit is lost."""
        return (x * (self.bins / (2 * self.interval))).clamp(-self.bins / 2, self.bins / 2)

    def _outside_same(self, x: Tensor, in_bins: Tensor, log_slope: Tensor) -> tuple[Tensor, Tensor]:
        inside = x.abs() < self.interval
        mapped = in_bins * (2 * self.interval / self.bins)
        return torch.where(inside, mapped, x), torch.where(inside, log_slope, 0.0)


def _piece(heights: Tensor, log_slopes: Tensor, bin_of: Tensor) -> _Piece:
    index, bins = bin_of[:, None], heights.shape[1]
    height = heights.gather(1, index)
    start = heights.cumsum(1).gather(1, index) - height - bins / 2
    # The slope at both ends of the interval is 1.
    left = torch.where(index > 0, log_slopes.gather(1, (index - 1).clamp(min=0)), 0.0).exp()
    right = torch.where(index < bins - 1, log_slopes.gather(1, index.clamp(max=bins - 2)), 0.0).exp()
    return _Piece(bin_of - bins / 2, *(part.squeeze(1) for part in (start, height, left, right)))

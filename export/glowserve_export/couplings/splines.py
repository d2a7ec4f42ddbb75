"""An affine transform and a rational-quadratic spline after it; see `glowserve_training.layers.splines`.

The network's output says the tanh of a bin's height and of the logarithm of a knot's slope. Everything that a value may
need to know of its spline is linear in these, and one convolution makes a table of it; a value then looks up its bin.

Shapes: A active channels, K bins. The network's output is [N, A * outputs, H, W]: the A shifts and the A scales of the
affine transform, then for each active channel its K heights and its K - 1 slopes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from glowserve_training.layers import splines as trained
from glowserve_training.layers import transforms as trained_transforms
from onnx import TensorProto
from torch import Tensor

from glowserve_export.builder import GraphBuilder
from glowserve_export.convolution import Float64Array, FoldedConv
from glowserve_export.couplings.transforms import Transform, fold_transform


@dataclass(frozen=True, eq=False)
class AffineSpline(Transform):
    """First the affine transform, then the spline."""

    affine: Transform
    """The affine transform."""

    bins: int
    """K."""

    interval: float
    """B: the spline maps [-B, B] to itself."""

    @property
    def outputs(self) -> int:
        """See `Transform`."""
        return self.affine.outputs + 2 * self.bins - 1

    def forward(self, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """See `Transform`."""
        of_affine, of_spline = self._parts(h)
        y, log_scale = self.affine.forward(x, of_affine)
        y, log_slope = self._spline().forward(y, of_spline)
        return y, log_scale + log_slope

    def inverse(self, y: Tensor, h: Tensor) -> Tensor:
        """See `Transform`."""
        of_affine, of_spline = self._parts(h)
        return self.affine.inverse(self._spline().inverse(y, of_spline)[0], of_affine)

    def _spline(self) -> trained.Spline:
        return trained.Spline(self.bins, self.interval)

    def _parts(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """The network's output for the affine transform, and that for the spline in the order of training."""
        channels = h.shape[1] // self.outputs
        of_affine, of_spline = h.split(self._sizes(channels), dim=1)
        return of_affine, of_spline.unflatten(1, (channels, -1)).transpose(1, 2).flatten(1, 2)

    def _sizes(self, channels: int) -> list[int]:
        return [self.affine.outputs * channels, (2 * self.bins - 1) * channels]

    def add_forward(
        self, g: GraphBuilder, x: str, h: str, channels: int, name: str
    ) -> tuple[str, str | None]:
        """See `Transform`."""
        of_affine, of_spline = g.split(h, self._sizes(channels), f"{name}.parts")
        x, log_scale = self.affine.add_forward(g, x, of_affine, channels, name)
        nodes = _SplineNodes(g, self, of_spline, channels, f"{name}.spline")
        y, minus_log_slope = nodes.add_forward(x)
        if log_scale is None:
            return y, minus_log_slope
        minus_log_scale = self.affine.add_minus_log_scale(g, log_scale, f"{name}.affine")
        return y, g.add("Add", [minus_log_scale, minus_log_slope], f"{name}.minus_log_derivative")

    def add_reverse(self, g: GraphBuilder, y: str, h: str, channels: int, name: str) -> str:
        """See `Transform`."""
        of_affine, of_spline = g.split(h, self._sizes(channels), f"{name}.parts")
        x = _SplineNodes(g, self, of_spline, channels, f"{name}.spline").add_reverse(y)
        return self.affine.add_reverse(g, x, of_affine, channels, name)


class _SplineNodes:
    """The nodes of a spline. They compute in units in which it maps [-K/2, K/2] to itself, so that bins have width 1.

    Args:
        g: the graph.
        spline: the transform.
        h: the network's output for the spline, [N, A * (2K - 1), H, W].
        channels: A.
        name: the names of its nodes begin with it.
    """

    def __init__(self, g: GraphBuilder, spline: AffineSpline, h: str, channels: int, name: str) -> None:
        self._g, self._channels, self._name = g, channels, name
        self._bins, self._interval = spline.bins, spline.interval
        self._tanh = self._add("Tanh", "tanh", h)
        self._table = self._linear(_table(self._bins), "table")
        # Heights and starts of the table are those of the spline after division by this.
        self._unit = self._linear(_heights(self._bins).sum(0, keepdims=True) / self._bins, "unit")

    def add_forward(self, x: str) -> tuple[str, str]:
        """The mapped values, and minus the logarithms of the slopes."""
        add, one = self._add, self._constant("one", 1.0)
        place, inside = self._in_bins(x)
        bin_of = add("Floor", "bin", add("Add", "from_first", place, self._half_bins()))
        left, right, raw_height, raw_start = self._piece(bin_of)
        height, start = (
            add("Div", "height", raw_height, self._unit),
            add("Div", "start", raw_start, self._unit),
        )
        at = add("Sub", "at", place, self._lower_end(bin_of))
        bend = add("Sub", "left_bend", left, height)
        curvature = add("Add", "curvature", bend, add("Sub", "right_bend", right, height))
        peak = add("Sub", "peak", at, add("Mul", "square", at, at))  # at (1 - at)
        excess = add("Mul", "excess", curvature, peak)
        divisor = add("Div", "divisor", add("Add", "denominator", height, excess), height)
        rise = add("Add", "numerator", add("Mul", "line", height, at), add("Mul", "bow", bend, peak))
        y = add("Add", "in_bins", start, add("Div", "rise", rise, divisor))
        tilt = add("Mul", "tilt", add("Sub", "slope_difference", right, left), at)
        slope = add("Sub", "slope", add("Add", "tilted", left, tilt), excess)
        inverse_slope = add("Div", "inverse_slope", add("Mul", "divisor_square", divisor, divisor), slope)
        inverse_slope = add("Where", "inverse_slope_inside", inside, inverse_slope, one)
        return self._out_of_bins(y, inside, x), add("Log", "minus_log_slope", inverse_slope)

    def add_reverse(self, y: str) -> str:
        """The values before the map."""
        add = self._add
        value, inside = self._in_bins(y)
        raw_value = add("Mul", "raw_value", value, self._unit)
        bin_of = self._bin_below(raw_value)
        left, right, raw_height, raw_start = self._piece(bin_of)
        raw_rise = add("Sub", "raw_rise", raw_value, raw_start)
        share, rise = add("Div", "share", raw_rise, raw_height), add("Div", "rise", raw_rise, self._unit)
        height = add("Div", "height", raw_height, self._unit)
        bend = add("Sub", "left_bend", left, height)
        curvature = add("Add", "curvature", bend, add("Sub", "right_bend", right, height))
        excess = add("Mul", "excess", share, curvature)
        # The root of a t^2 + 2 b t = rise with a = excess - bend and b = (left - excess) / 2, without cancellation.
        a, twice_b = add("Sub", "a", excess, bend), add("Sub", "twice_b", left, excess)
        b = add("Mul", "b", twice_b, self._constant("half", 0.5))
        square = add("Add", "discriminant", add("Mul", "b_square", b, b), add("Mul", "a_rise", a, rise))
        root = add("Sqrt", "root", add("Relu", "discriminant_positive", square))
        at = add("Div", "at", rise, add("Add", "divisor", b, root))
        return self._out_of_bins(add("Add", "place", self._lower_end(bin_of), at), inside, y)

    def _in_bins(self, x: str) -> tuple[str, str]:
        """Values of [-B, B) in [-K/2, K/2), and whether a value is one of them; 0 for others, also those not finite."""
        add, half, bins = self._add, np.float32(self._bins / 2), np.float32(self._bins)
        x = add("Mul", "scaled", x, self._constant("per_value", half / self._interval))
        # The largest value to which K/2 can be added without reaching K: there is no bin K to look up.
        last = self._constant("last", np.nextafter(bins, np.float32(0)) - half)
        clipped = add("Clip", "clipped", x, self._constant("first", -half), last)
        inside = add("Equal", "inside", x, clipped)
        return add("Where", "in_interval", inside, clipped, self._constant("zero", 0.0)), inside

    def _out_of_bins(self, x: str, inside: str, outside: str) -> str:
        x = self._add("Mul", "mapped", x, self._constant("per_bin", 2 * self._interval / self._bins))
        return self._add("Where", "joined", inside, x, outside)

    def _bin_below(self, raw_value: str) -> str:
        """The bin of each value, times the unit: how many of the starts of the bins after the first lie below."""
        add, bins = self._add, self._bins
        knots = self._linear(_starts(bins)[1:], "knots")
        values = self._grouped(raw_value, np.ones((bins - 1, 1)), np.zeros(bins - 1), "values")
        below = add("Cast", "below", add("GreaterOrEqual", "is_below", values, knots), to=TensorProto.FLOAT)
        return self._grouped(below, np.ones((1, bins - 1)), np.zeros(1), "bin")

    def _piece(self, bin_of: str) -> list[str]:
        """Of the bin of each value: the slopes at its ends, and height and start times the unit."""
        bins, channels, add = self._bins, self._channels, self._add
        # Rows of the table: K + 1 slopes, K heights, K starts.
        first = np.array([0, 1, bins + 1, 2 * bins + 1])
        rows = (first[:, None] + np.arange(channels) * (3 * bins + 1)).reshape(-1, 1, 1)
        index = self._g.add("Concat", [bin_of] * len(first), f"{self._name}.bins", axis=1)
        index = add("Add", "rows", index, self._constant(f"rows{channels}", rows.astype(np.float64)))
        index = add("Cast", "index", index, to=TensorProto.INT64)
        piece = add("GatherElements", "piece", self._table, index, axis=1)
        left, right, *rest = self._g.split(piece, [channels] * len(first), f"{self._name}.parts")
        return [add("Exp", "left", left), add("Exp", "right", right), *rest]

    def _lower_end(self, bin_of: str) -> str:
        return self._add("Sub", "lower_end", bin_of, self._half_bins())

    def _half_bins(self) -> str:
        return self._constant("half_bins", self._bins / 2)

    def _linear(self, coefficients: Float64Array, output: str) -> str:
        """[N, A * rows, H, W] of coefficients [rows, 2K] of the tanh of the network's outputs, the last times 1."""
        return self._grouped(self._tanh, coefficients[:, :-1], coefficients[:, -1], output)

    def _grouped(self, x: str, weight: Float64Array, bias: Float64Array, output: str) -> str:
        """The same 1x1 convolution of each active channel."""
        shared = f"{output}{self._channels}"
        weights = np.tile(weight[:, :, None, None], (self._channels, 1, 1, 1))
        inputs = [x, self._constant(f"{shared}.weight", weights)]
        inputs.append(self._constant(f"{shared}.bias", np.tile(bias, self._channels)))
        return self._add("Conv", output, *inputs, kernel_shape=[1, 1], group=self._channels)

    def _constant(self, name: str, value: float | Float64Array | np.float32) -> str:
        return self._g.constant(f"spline.{name}", value)

    def _add(self, operator: str, output: str, *inputs: str, **attributes: object) -> str:
        return self._g.add(operator, inputs, f"{self._name}.{output}", **attributes)


def _heights(bins: int) -> Float64Array:
    """Heights in units, as coefficients of the tanh of K heights and K - 1 slopes, and of 1, [K, 2K]."""
    return np.eye(bins, 2 * bins) + np.eye(1, 2 * bins, 2 * bins - 1) * (1 + 2 / bins)


def _starts(bins: int) -> Float64Array:
    """What the lower ends of bins are mapped to: half of the heights before, less half of the others; [K, 2K]."""
    before = np.tri(bins, k=-1)
    return (before - before.T - np.eye(bins)) @ _heights(bins) / 2


def _table(bins: int) -> Float64Array:
    """Logarithms of slopes at K + 1 knots, heights and starts of K bins, as coefficients, see `_heights`."""
    slopes = np.zeros((bins + 1, 2 * bins))
    slopes[1:-1, bins:-1] = math.log(trained.KNOT_SLOPE_BOUND) * np.eye(bins - 1)
    return np.concatenate((slopes, _heights(bins), _starts(bins)))


@fold_transform.register
def _(transform: trained_transforms.AffineSpline, last: FoldedConv) -> tuple[Transform, FoldedConv]:
    channels = last.outputs // transform.outputs
    outputs = np.arange(last.outputs).reshape(-1, channels)
    affine, of_affine = fold_transform(transform.affine, last.selected(outputs[:2].reshape(-1)))
    of_spline = last.selected(outputs[2:].T.reshape(-1))
    spline = transform.spline
    return AffineSpline(affine, spline.bins, spline.interval), of_affine.joined(of_spline)

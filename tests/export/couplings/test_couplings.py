"""Every mask with every transform: the float64 reference, and the nodes in both directions and in every precision."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.builder import GraphBuilder, float_info
from glowserve_export.convolution import FoldedConv, per_channel
from glowserve_export.couplings import (
    Checkerboard,
    DoubleSigmoidScale,
    ExpScale,
    FoldedCoupling,
    FoldedNetwork,
    Halves,
    InverseSigmoidScale,
    Mask,
    Shift,
    SigmoidScale,
    TanhScale,
    Transform,
    add_log_det,
)
from glowserve_export.precision import FP16, FP32, Precision, Ranges
from glowserve_training.layers.masks import Mask as TrainedMask
from glowserve_training.layers.transforms import Transform as TrainedTransform

from glowserve.image_size import ImageSize
from tests.export import interpreter
from tests.export.models import run_graph

CHANNELS, SIZE = 4, 3
SQUARE = ImageSize.of(SIZE)
MASKS: list[Mask] = [
    Halves(),
    Halves(transforms_first=True),
    Checkerboard(0, SQUARE),
    Checkerboard(1, SQUARE),
]
TRANSFORMS: list[type[Transform]] = [
    Shift,
    SigmoidScale,
    InverseSigmoidScale,
    ExpScale,
    DoubleSigmoidScale,
    TanhScale,
]
COMBINATIONS = list(product(MASKS, TRANSFORMS))

Array = np.ndarray[Any, Any]


def _coupling(rng: np.random.Generator, mask: Mask, kind: type[Transform]) -> FoldedCoupling:
    """A coupling of 4 channels and 3 x 3 positions with random weights."""
    channels = CHANNELS // 2 if isinstance(mask, Halves) else CHANNELS
    transform = TanhScale(rng.uniform(0.25, 4, channels)) if kind is TanhScale else kind()

    def conv(out: int, into: int, kernel: int) -> FoldedConv:
        return FoldedConv(
            0.3 * rng.standard_normal((out, into, kernel, kernel)), 0.3 * rng.standard_normal(out)
        )

    network = FoldedNetwork(conv(6, channels, 3), conv(6, 6, 1), conv(kind.outputs * channels, 6, 3))
    return FoldedCoupling(mask, network, transform)


@pytest.fixture(params=COMBINATIONS, ids=lambda each: f"{each[0]}-{each[1].__name__}")
def coupling(request: pytest.FixtureRequest, rng: np.random.Generator) -> FoldedCoupling:
    return _coupling(rng, *request.param)


def _input(rng: np.random.Generator, n: int = 5) -> Array:
    return rng.standard_normal((n, CHANNELS, SIZE, SIZE)).astype(np.float32)


def test_the_reference_is_that_of_the_interpreter_and_inverts_itself(
    coupling: FoldedCoupling, rng: np.random.Generator
) -> None:
    x = _input(rng).astype(np.float64)
    y, log_scale = coupling.forward(torch.from_numpy(x))
    expected, expected_log_det = interpreter.couple(coupling, x)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_scale.sum((1, 2, 3)), expected_log_det, rtol=1e-12, atol=1e-12)
    assert log_scale.shape == y.shape
    assert (log_scale.numpy()[y.numpy() == x] == 0).all()
    np.testing.assert_allclose(coupling.inverse(y), x, rtol=1e-11, atol=1e-11)
    assert (y.numpy() != x).mean() > 0.4, (
        "about half of the values must be transformed, or this test shows nothing"
    )


def test_the_log_determinant_is_that_of_the_jacobian(
    coupling: FoldedCoupling, rng: np.random.Generator
) -> None:
    x = torch.from_numpy(_input(rng, 1).astype(np.float64))
    jacobian = torch.autograd.functional.jacobian(lambda x: coupling.forward(x)[0].flatten(), x)
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    np.testing.assert_allclose(coupling.forward(x)[1].sum(), expected, rtol=1e-10, atol=1e-12)


def _ranges(coupling: FoldedCoupling, x: Array) -> Ranges:
    passive = coupling.mask.split(torch.from_numpy(x))[0].numpy()
    hidden1, hidden2, y = interpreter.run_network(passive, coupling.network)
    unbiased = y - per_channel(coupling.network.last.bias)
    largest = np.abs(passive).max(axis=(0, 2, 3))
    minimum, maximum = unbiased.min(axis=(0, 2, 3)), unbiased.max(axis=(0, 2, 3))
    return Ranges(largest, (hidden1.max(), hidden2.max()), minimum, maximum)


def _run(couplings: list[FoldedCoupling], x: Array, precision: Precision) -> dict[str, Array]:
    """The output of couplings in turn, their log-determinant, and what the reverse graph makes of the output."""
    g = GraphBuilder()
    y, scales = "x", []
    for k, coupling in enumerate(couplings):
        y, log_scale = coupling.add_forward(g, y, f"c{k}", precision=precision)
        scales += [(coupling, log_scale)] if log_scale else []
    log_det = [term.total for term in add_log_det(g, scales, SQUARE, "all")]
    shape = ("N", CHANNELS, SIZE, SIZE)
    outputs = [float_info(y, *shape), *(float_info(name, "N", 1) for name in log_det)]
    found = run_graph(g.model("forward", [float_info("x", *shape)], outputs), x=x)

    g, back = GraphBuilder(), "y"
    for k, coupling in reversed(list(enumerate(couplings))):
        back = coupling.add_reverse(g, back, f"c{k}", output=f"r{k}", precision=precision)
    model = g.model("reverse", [float_info("y", *shape)], [float_info(back, *shape)])
    restored = run_graph(model, y=found[y])[back]
    zeros = np.zeros((len(x), 1), np.float32)
    return {"y": found[y], "log_det": found[log_det[0]] if log_det else zeros, "x": restored}


def test_nodes_compute_what_the_reference_does(coupling: FoldedCoupling, rng: np.random.Generator) -> None:
    x = _input(rng)
    y, log_scale = coupling.forward(torch.from_numpy(x).double())
    found = _run([coupling], x, FP32)
    np.testing.assert_allclose(found["y"], y, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(found["log_det"][:, 0], log_scale.sum((1, 2, 3)), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found["x"], x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["fp16", "int8"])
def test_low_precision_is_inverted_and_close(
    name: str, coupling: FoldedCoupling, rng: np.random.Generator
) -> None:
    x = _input(rng)
    precision = FP16 if name == "fp16" else Precision("int8", {"c0": _ranges(coupling, x.astype(np.float64))})
    y, log_scale = coupling.forward(torch.from_numpy(x).double())
    found = _run([coupling], x, precision)
    tolerance = 0.02 if name == "fp16" else 0.2
    np.testing.assert_allclose(found["y"], y, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(
        found["log_det"][:, 0], log_scale.sum((1, 2, 3)), rtol=tolerance, atol=10 * tolerance
    )
    np.testing.assert_allclose(found["x"], x, rtol=1e-4, atol=1e-4)


def test_any_couplings_of_one_size_have_one_log_determinant(rng: np.random.Generator) -> None:
    couplings = [_coupling(rng, mask, kind) for mask, kind in COMBINATIONS]
    rng.shuffle(couplings)  # type: ignore[arg-type]  # NumPy shuffles lists, too
    for some in (couplings[:6], couplings[6:12], couplings[12:18], couplings[18:]):
        x = 0.3 * _input(rng)
        y, total = torch.from_numpy(x).double(), torch.zeros(len(x), dtype=torch.float64)
        for coupling in some:
            y, log_scale = coupling.forward(y)
            total += log_scale.sum((1, 2, 3))
        found = _run(some, x, FP32)
        np.testing.assert_allclose(found["log_det"][:, 0], total, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(found["y"], y, rtol=1e-4, atol=1e-4)


def test_positions_that_a_mask_discards_may_be_infinite(rng: np.random.Generator) -> None:
    """A scale of 0 makes the inverse infinite, at passive positions too, whose values come from elsewhere."""
    coupling = _coupling(rng, Checkerboard(0, SQUARE), SigmoidScale)
    last = coupling.network.last
    bias = np.zeros((last.outputs, SIZE, SIZE))
    bias[CHANNELS:, ::2, ::2] = bias[CHANNELS:, 1, 1] = -200.0  # passive positions
    network = coupling.network._replace(last=FoldedConv(last.weight, bias))
    found = _run([FoldedCoupling(coupling.mask, network, coupling.transform)], _input(rng), FP32)
    assert all(np.isfinite(values).all() for values in found.values())


@pytest.mark.parametrize(("base", "module"), [(TrainedMask, "masks"), (TrainedTransform, "transforms")])
def test_every_class_of_training_is_folded(base: type, module: str) -> None:
    from glowserve_export.couplings import masks, transforms

    fold = {"masks": masks.fold_mask, "transforms": transforms.fold_transform}[module]
    assert base.__subclasses__()
    assert set(base.__subclasses__()) <= set(fold.registry)

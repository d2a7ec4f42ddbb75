"""Every layer is a bijector: its inverse inverts, and its log-determinant is that of the Jacobian."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import (
    ActNorm,
    Additive,
    AffineSpline,
    Bijector,
    ChannelMask,
    CheckerboardMask,
    Coupling,
    DoubleSigmoid,
    FlowStep,
    Level,
    LUConv1x1,
    Mask,
    OrthogonalConv1x1,
    PlainConv1x1,
    QLUConv1x1,
    SigmoidAffine,
    Split,
    Squeeze,
    TanhAffine,
    TopPrior,
    Transform,
)

from tests.training.conftest import JacobianLogDet
from tests.training.layers.conftest import Prepare
from tests.training.models import in_double

EVEN, ODD = (4, 2), (3, 5)
MASKS: dict[str, tuple[Callable[[int], Mask], tuple[int, ...]]] = {
    "second half": (ChannelMask, (2, 3, 4)),
    "first half": (partial(ChannelMask, transforms_first=True), (2, 3, 4)),
    "checkerboard 0": (partial(CheckerboardMask, parity=0), (1, 3)),
    "checkerboard 1": (partial(CheckerboardMask, parity=1), (1, 3)),
}
TRANSFORMS: dict[str, Callable[[int], Transform]] = {
    "additive": lambda _: Additive(),
    "sigmoid": lambda _: SigmoidAffine(),
    "double sigmoid": lambda _: DoubleSigmoid(),
    "tanh": TanhAffine,
    "spline": lambda channels: AffineSpline(TanhAffine(channels), bins=4, interval=2.0),
}


def coupling(mask: str, transform: str, actnorm: bool, channels: int) -> Coupling:
    made = MASKS[mask][0](channels)
    return Coupling(made, TRANSFORMS[transform](made.active_channels), width=6, actnorm=actnorm)


def config(**choices: str) -> GlowConfig:
    return GlowConfig(image_size=8, channels=1, steps_per_level=2, width=6, **choices)  # type: ignore[arg-type]


def step(channels: int, **choices: str) -> FlowStep:
    return in_double(FlowStep, channels, config(**choices))


def level(channels: int, *, top: bool, **choices: str) -> Level:
    return in_double(Level, channels, config(**choices), top=top)


BIJECTORS: dict[str, tuple[Callable[[int], Bijector], tuple[int, ...]]] = {
    "actnorm": (ActNorm, (1, 2, 3)),
    "bounded actnorm": (partial(ActNorm, bound=0.5), (1, 2, 3)),
    "plain conv": (PlainConv1x1, (1, 2, 3, 12)),
    "lu conv": (LUConv1x1, (1, 2, 3, 12)),
    "orthogonal conv": (partial(in_double, OrthogonalConv1x1), (1, 2, 3, 12)),
    "qlu conv": (partial(in_double, QLUConv1x1), (1, 2, 3, 12)),
    "split": (Split, (2, 4, 6)),
    "bounded split": (partial(Split, bound=0.5), (2, 4, 6)),
    "top prior": (TopPrior, (1, 3, 4)),
    "bounded top prior": (partial(TopPrior, bound=0.5), (1, 3, 4)),
    "tanh qlu step": (step, (2, 3, 8)),
    "sigmoid lu step": (partial(step, coupling_scale="sigmoid", parametrization="lu"), (2, 3, 8)),
    "additive plain step": (partial(step, coupling="additive", parametrization="plain"), (2, 3, 8)),
    "spline qlu step": (partial(step, coupling="spline"), (2, 3, 8)),
    "sigmoid spline step": (partial(step, coupling="spline", coupling_scale="sigmoid"), (2, 3)),
    "tanh orthogonal step": (partial(step, parametrization="orthogonal"), (2, 3, 8)),
}
BIJECTORS |= {
    f"{transform} coupling, {mask}{', actnorm' * actnorm}": (
        partial(coupling, mask, transform, actnorm),
        channels,
    )
    for (mask, (_, channels)), transform, actnorm in itertools.product(
        MASKS.items(), TRANSFORMS, (False, True)
    )
}
# These need an even height and width.
SQUEEZING: dict[str, tuple[Callable[[int], Bijector], tuple[int, ...]]] = {
    "squeeze": (lambda _: Squeeze(), (1, 2, 3)),
    "tanh qlu level": (partial(level, top=False), (1, 2, 3)),
    "sigmoid plain level": (
        partial(level, top=False, coupling_scale="sigmoid", parametrization="plain"),
        (1, 2, 3),
    ),
    "spline qlu level": (partial(level, top=False, coupling="spline"), (1, 3)),
    "additive lu top": (partial(level, top=True, coupling="additive", parametrization="lu"), (1, 2, 3)),
}
CASES = [
    pytest.param(make, channels, size, id=f"{name}-{channels}-{size[0]}x{size[1]}")
    for sizes, kinds in (((EVEN, ODD), BIJECTORS), ((EVEN,), SQUEEZING))
    for name, (make, several) in kinds.items()
    for channels in several
    for size in sizes
]


@pytest.mark.parametrize(("make", "channels", "size"), CASES)
def test_the_inverse_inverts_the_forward(
    make: Callable[[int], Bijector],
    channels: int,
    size: tuple[int, int],
    prepared: Prepare,
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    for n in (1, 3):
        x = torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)

        y, log_det = layer(x)
        back, inverse_log_det = layer.inverse(y)

        assert log_det.shape == inverse_log_det.shape == (n,)
        assert back.shape == x.shape
        torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
        torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("make", "channels", "size"), CASES)
def test_the_log_determinant_is_that_of_the_jacobian(
    make: Callable[[int], Bijector],
    channels: int,
    size: tuple[int, int],
    prepared: Prepare,
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    for n in (1, 3):
        x = torch.randn(n, channels, *size, generator=generator, dtype=torch.float64)

        _, log_det = layer(x)

        torch.testing.assert_close(log_det.detach(), jacobian_log_det(layer, x), rtol=0, atol=1e-6)

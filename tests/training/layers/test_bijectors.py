"""Every layer is a bijector: its inverse inverts, and its log-determinant is that of the Jacobian."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from glowserve_training.config import GlowConfig
from glowserve_training.layers import (
    ActNorm,
    AdditiveCoupling,
    AffineCoupling,
    Bijector,
    FlowStep,
    Level,
    LUConv1x1,
    OrthogonalConv1x1,
    PlainConv1x1,
    Split,
    Squeeze,
    TopPrior,
)

from tests.training.conftest import JacobianLogDet
from tests.training.layers.conftest import Prepare, in_double


def config(coupling: str, parametrization: str) -> GlowConfig:
    return GlowConfig(
        image_size=8,
        channels=1,
        steps_per_level=2,
        width=6,
        coupling=coupling,
        parametrization=parametrization,
    )


BIJECTORS: dict[str, tuple[Callable[[int], Bijector], tuple[int, ...]]] = {
    "actnorm": (ActNorm, (1, 2, 3)),
    "plain conv": (PlainConv1x1, (1, 2, 3, 12)),
    "lu conv": (LUConv1x1, (1, 2, 3, 12)),
    "orthogonal conv": (lambda channels: in_double(OrthogonalConv1x1, channels), (1, 2, 3, 12)),
    "affine coupling": (lambda channels: AffineCoupling(channels, width=6), (2, 3, 5, 8)),
    "additive coupling": (lambda channels: AdditiveCoupling(channels, width=6), (2, 3, 5, 8)),
    "affine coupling with actnorm": (
        lambda channels: AffineCoupling(channels, width=6, actnorm=True),
        (2, 5),
    ),
    "additive coupling with actnorm": (
        lambda channels: AdditiveCoupling(channels, width=6, actnorm=True),
        (2, 5),
    ),
    "squeeze": (lambda _: Squeeze(), (1, 2, 3)),
    "split": (Split, (2, 4, 6)),
    "top prior": (TopPrior, (1, 3, 4)),
    "affine lu step": (lambda channels: FlowStep(channels, config("affine", "lu")), (2, 3, 8)),
    "additive plain step": (lambda channels: FlowStep(channels, config("additive", "plain")), (2, 3, 8)),
    "affine orthogonal step": (
        lambda channels: in_double(FlowStep, channels, config("affine", "orthogonal")),
        (2, 3, 8),
    ),
    "affine plain level": (lambda channels: Level(channels, config("affine", "plain"), top=False), (1, 2, 3)),
    "additive lu top": (lambda channels: Level(channels, config("additive", "lu"), top=True), (1, 2, 3)),
}
CASES = [
    pytest.param(make, channels, id=f"{name}-{channels}")
    for name, (make, several) in BIJECTORS.items()
    for channels in several
]


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("make", "channels"), CASES)
def test_the_inverse_inverts_the_forward(
    make: Callable[[int], Bijector],
    channels: int,
    n: int,
    prepared: Prepare,
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    x = torch.randn(n, channels, 4, 6, generator=generator, dtype=torch.float64)

    y, log_det = layer(x)
    back, inverse_log_det = layer.inverse(y)

    assert log_det.shape == inverse_log_det.shape == (n,)
    assert back.shape == x.shape
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize(("make", "channels"), CASES)
def test_the_log_determinant_is_that_of_the_jacobian(
    make: Callable[[int], Bijector],
    channels: int,
    n: int,
    prepared: Prepare,
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    layer = prepared(make(channels))
    x = torch.randn(n, channels, 2, 4, generator=generator, dtype=torch.float64)

    _, log_det = layer(x)

    torch.testing.assert_close(log_det.detach(), jacobian_log_det(layer, x), rtol=0, atol=1e-6)

"""From a checkpoint of ours to BakedGlow. All folding and inverting is done in float64."""

from __future__ import annotations

import copy
import math
from typing import cast

import numpy as np
import torch
from glowserve_training.dequantization import NOISE_MARGIN, VariationalDequantization
from glowserve_training.layers import (
    AffineCoupling,
    HiddenConv2d,
    Split,
    TopPrior,
    ZeroConv2d,
)
from glowserve_training.layers.coupling import LOG_SCALE_FACTOR, SCALE_SHIFT, CouplingNetwork
from glowserve_training.model import FlowStep, Glow, Level
from glowserve_training.names import step_name
from torch import Tensor, nn

from glowserve_export.baked import (
    BakedConv,
    BakedDequantization,
    BakedGlow,
    BakedLevel,
    BakedNetwork,
    BakedStep,
    Float64Array,
)
from glowserve_export.frontends.checks import check_condition, check_finite


@torch.no_grad()
def bake(model: Glow) -> BakedGlow:
    """Folds a model into constants.

    Raises:
        NotInvertibleError: a weight is not finite, or a 1x1 convolution is singular or nearly so.
    """
    check_finite(model.state_dict())
    config = model.config
    double = copy.deepcopy(model).double()
    levels, constant = [], -config.dimensions * config.n_bits * math.log(2)
    for i, level in enumerate(cast("list[Level]", list(double.levels)), 1):
        named = enumerate(cast("list[FlowStep]", list(level.steps)), 1)
        steps = tuple(_bake_step(step, step_name(i, k)) for k, step in named)
        constant += (config.image_size >> i) ** 2 * float(level.constant_log_det())
        levels.append(BakedLevel(steps, _bake_prior(level.prior)))
    top = cast("TopPrior", cast("Level", double.levels[-1]).prior)
    return BakedGlow(
        image_size=config.image_size,
        channels=config.channels,
        n_bits=config.n_bits,
        levels=tuple(levels),
        top_mean=_array(top.mean).reshape(-1),
        top_log_scale=_array(top.log_scale).reshape(-1),
        log_det_constant=constant,
        dequantization=_bake_dequantization(double.dequantization),
    )


def _bake_dequantization(dequantization: VariationalDequantization | None) -> BakedDequantization | None:
    if dequantization is None:
        return None
    networks = cast("list[CouplingNetwork]", list(dequantization.networks))
    return BakedDequantization(NOISE_MARGIN, tuple(_bake_network(network) for network in networks))


def _bake_step(step: FlowStep, name: str) -> BakedStep:
    scale = _array(step.actnorm.log_scale.exp()).reshape(-1)
    actnorm_bias = _array(step.actnorm.bias).reshape(-1)
    weight = _array(step.conv1x1.weight())
    check_condition(
        weight,
        f"{name}: the 1x1 convolution",
        "Go back to an earlier checkpoint; with parametrization 'orthogonal' it is always 1",
    )
    matrix = weight * scale  # W diag(scale): actnorm comes first
    inverse = np.linalg.inv(weight) / scale[:, None]
    affine = isinstance(step.coupling, AffineCoupling)
    return BakedStep(
        matrix=matrix,
        bias=matrix @ actnorm_bias,
        inverse_matrix=inverse,
        inverse_bias=-actnorm_bias,
        network=_bake_network(step.coupling.network, logit_shift=SCALE_SHIFT if affine else 0.0),
        affine=affine,
    )


def _bake_network(network: CouplingNetwork, logit_shift: float = 0.0) -> BakedNetwork:
    first, _, second, _, last = network
    return (
        _bake_hidden_conv(cast("HiddenConv2d", first)),
        _bake_hidden_conv(cast("HiddenConv2d", second)),
        _bake_zero_conv(cast("ZeroConv2d", last), logit_shift),
    )


def _bake_prior(prior: nn.Module) -> BakedConv | None:
    return _bake_zero_conv(prior.network) if isinstance(prior, Split) else None


def _bake_hidden_conv(conv: HiddenConv2d) -> BakedConv:
    weight, bias = conv.weight_and_bias()
    return BakedConv(_array(weight), _array(bias))


def _bake_zero_conv(conv: ZeroConv2d, logit_shift: float = 0.0) -> BakedConv:
    """With its scale folded in, and the shift of the second half of the outputs."""
    scale = _array((LOG_SCALE_FACTOR * conv.log_scale).exp()).reshape(-1)
    bias = _array(cast("Tensor", conv.conv.bias)) * scale
    bias[len(bias) // 2 :] += logit_shift
    return BakedConv(_array(conv.conv.weight) * scale[:, None, None, None], bias)


def _array(tensor: Tensor) -> Float64Array:
    return tensor.detach().numpy().astype(np.float64)

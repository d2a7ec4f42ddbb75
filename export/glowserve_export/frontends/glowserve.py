"""Folds a model of glowserve. All folding and inverting is done in float64."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from glowserve_training.dequantization import NOISE_MARGIN, VariationalDequantization
from glowserve_training.layers import AffineCoupling, FlowStep, HiddenConv2d, Split, TopPrior, ZeroConv2d
from glowserve_training.layers.coupling import CouplingNetwork
from glowserve_training.model import Glow
from glowserve_training.names import step_name
from torch import Tensor, nn

from glowserve_export.folded import (
    Float64Array,
    FoldedConv,
    FoldedDequantization,
    FoldedGlow,
    FoldedLevel,
    FoldedNetwork,
    FoldedStep,
)
from glowserve_export.frontends.checks import check_condition, check_finite
from glowserve_export.frontends.convolutions import shift_and_logit
from glowserve_export.reference import as_float64


@torch.no_grad()
def fold_glow(model: Glow) -> FoldedGlow:
    """Folds a model. The result shares weights with a float64 model.

    Raises:
        NotInvertibleError: a weight is not finite, or a 1x1 convolution is singular or nearly so.
    """
    check_finite(model.state_dict())
    config = model.config
    double = as_float64(model)
    levels, constant = [], -config.dimensions * config.n_bits * math.log(2)
    for i, level in enumerate(double.flow_levels(), 1):
        steps = [_fold_step(step, step_name(i, k)) for k, step in enumerate(level.flow_steps(), 1)]
        constant += (config.image_size >> i) ** 2 * float(level.constant_log_det())
        levels.append(FoldedLevel(tuple(steps), _fold_prior(level.prior)))
    top = cast("TopPrior", double.flow_levels()[-1].prior)
    return FoldedGlow(
        image_size=config.image_size,
        channels=config.channels,
        n_bits=config.n_bits,
        levels=tuple(levels),
        top_mean=_array(top.mean).reshape(-1),
        top_log_scale=_array(top.log_scale).reshape(-1),
        log_det_constant=constant,
        dequantization=_fold_dequantization(double.dequantization),
    )


def _fold_dequantization(dequantization: VariationalDequantization | None) -> FoldedDequantization | None:
    if dequantization is None:
        return None
    networks = cast("list[CouplingNetwork]", list(dequantization.networks))
    return FoldedDequantization(NOISE_MARGIN, tuple(_fold_network(network) for network in networks))


def _fold_step(step: FlowStep, name: str) -> FoldedStep:
    scale = _array(step.actnorm.log_scale.exp()).reshape(-1)
    actnorm_bias = _array(step.actnorm.bias).reshape(-1)
    weight = _array(step.conv1x1.weight())
    check_condition(
        weight,
        f"{name}: the 1x1 convolution",
        "Export an earlier checkpoint, or train with parametrization 'orthogonal', which keeps it at 1",
    )
    matrix = weight * scale  # W diag(scale): the actnorm is applied first
    first, second, last = _fold_network(step.coupling.network)
    affine = isinstance(step.coupling, AffineCoupling)
    return FoldedStep(
        matrix=matrix,
        bias=matrix @ actnorm_bias,
        inverse_matrix=np.linalg.inv(weight) / scale[:, None],
        inverse_bias=-actnorm_bias,
        network=(first, second, shift_and_logit(last) if affine else last),
        scale_map="sigmoid" if affine else None,
    )


def _fold_network(network: CouplingNetwork) -> FoldedNetwork:
    first, _, second, _, last = network
    return (
        _fold_conv(cast("HiddenConv2d", first)),
        _fold_conv(cast("HiddenConv2d", second)),
        _fold_conv(cast("ZeroConv2d", last)),
    )


def _fold_prior(prior: nn.Module) -> FoldedConv | None:
    return _fold_conv(prior.network) if isinstance(prior, Split) else None


def _fold_conv(conv: HiddenConv2d | ZeroConv2d) -> FoldedConv:
    weight, bias = conv.weight_and_bias()
    return FoldedConv(_array(weight), _array(bias))


def _array(tensor: Tensor) -> Float64Array:
    return np.asarray(tensor.detach().numpy(), np.float64)

"""Folds a model of glowserve. All folding and inverting is done in float64."""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import torch
from glowserve_training.layers import FlowStep, Split, TopPrior
from glowserve_training.model import Glow
from glowserve_training.names import step_name

from glowserve.image_size import ImageSize
from glowserve_export.classes import FoldedClasses
from glowserve_export.convolution import as_array
from glowserve_export.couplings import FoldedCoupling
from glowserve_export.dequantization import FoldedDequantization
from glowserve_export.folded import FoldedGlow, FoldedLevel, FoldedStep
from glowserve_export.frontends.checks import check_condition, check_finite
from glowserve_export.preprocessing import fold_preprocessing
from glowserve_export.reference import as_float64
from glowserve_export.split import FoldedSplit


@torch.no_grad()
def fold_glow(model: Glow) -> FoldedGlow:
    """Folds a model. The result shares weights with a float64 model.

    Raises:
        NotInvertibleError: a weight is not finite, or a 1x1 convolution is singular or nearly so.
    """
    check_finite(model.state_dict())
    config = model.config
    double = as_float64(model)
    size, dequantization = config.image_size, double.dequantization
    levels, constant = [], -config.dimensions * config.n_bits * math.log(2)
    for i, level in enumerate(double.flow_levels(), 1):
        steps = [
            _fold_step(step, size.halved(i), step_name(i, k)) for k, step in enumerate(level.flow_steps(), 1)
        ]
        constant += size.halved(i).pixels * float(level.constant_log_det())
        split = FoldedSplit.of(level.prior) if isinstance(level.prior, Split) else None
        levels.append(FoldedLevel(tuple(steps), split))
    top = cast("TopPrior", double.flow_levels()[-1].prior)
    return FoldedGlow(
        image_size=size,
        channels=config.channels,
        n_bits=config.n_bits,
        levels=tuple(levels),
        top_mean=as_array(top.mean).reshape(-1),
        top_log_scale=as_array(top.effective_log_scale()).reshape(-1),
        log_det_constant=constant,
        dequantization=FoldedDequantization.of(dequantization, size) if dequantization else None,
        preprocessing=fold_preprocessing(double.preprocessing),
        pixel_couplings=tuple(FoldedCoupling.of(each, size) for each in double.couplings_of_pixels()),
        classes=_fold_classes(double),
    )


def _fold_classes(model: Glow) -> FoldedClasses | None:
    if model.class_priors is None:
        return None
    return FoldedClasses.of(model.class_priors, [math.prod(shape) for shape in model.latent_shapes()])


def _fold_step(step: FlowStep, size: ImageSize, name: str) -> FoldedStep:
    scale = as_array(step.actnorm.effective_log_scale().exp()).reshape(-1)
    actnorm_bias = as_array(step.actnorm.bias).reshape(-1)
    weight = as_array(step.conv1x1.weight())
    check_condition(
        weight,
        f"{name}: the 1x1 convolution",
        "Export an earlier checkpoint, or train with parametrization 'qlu', which bounds it",
    )
    matrix = weight * scale  # W diag(scale): the actnorm is applied first
    return FoldedStep(
        matrix=matrix,
        bias=matrix @ actnorm_bias,
        inverse_matrix=np.linalg.inv(weight) / scale[:, None],
        inverse_bias=-actnorm_bias,
        coupling=FoldedCoupling.of(step.coupling, size),
    )

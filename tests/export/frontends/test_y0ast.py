"""Checkpoints of y0ast/Glow-PyTorch: what only this implementation has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError, NotInvertibleError
from glowserve_export.frontends.public import import_public

from tests.export.frontends.public_models import (
    IMPORTS,
    assert_same_likelihood,
    change_weights,
    public_model,
    weights_of,
    write_arguments,
    write_public,
)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"y_condition": True, "y_classes": 1},
            "y_classes is 1, and y_condition is true; it must be 2 to 1000",
        ),
        (
            {"flow_permutation": "shuffle"},
            "'shuffle', and a checkpoint does not contain its random permutations",
        ),
        ({"flow_permutation": "none"}, "flow_permutation is 'none'; it must be invconv or reverse"),
        ({"flow_coupling": "spline"}, "flow_coupling is 'spline'; it must be affine or additive"),
        ({"image_shape": [8, 8, 5]}, "images have 5 channels; 1 to 4 are supported"),
        ({"image_shape": [8, 6, 3]}, "8 x 6 pixels cannot be halved 2 times"),
        (
            {"image_shape": [6, 6, 3]},
            "6 x 6 pixels cannot be halved 2 times, once for each level; height and width must each be a multiple of 4",
        ),
    ],
    ids=str,
)
def test_unsupported_models_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = write_arguments(tmp_path, public_model("y0ast"), **wrong)
    with pytest.raises(ArgumentsError, match=re.escape(message)):
        IMPORTS["y0ast"]({}, tmp_path / "public.pt", arguments)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"K": 3}, "flow.layers.3.conv.logs of shape [12, 1, 1] is unexpected"),
        ({"K": 1}, "flow.layers.2.actnorm.bias of shape [1, 12, 1, 1] is unexpected"),
        ({"L": 1}, "prior_h has shape [1, 48, 2, 2], and the arguments imply [1, 24, 4, 4]"),
        (
            {"image_shape": [16, 16, 3]},
            "prior_h has shape [1, 48, 2, 2], and the arguments imply [1, 48, 4, 4]",
        ),
        ({"hidden_channels": 7}, "flow.layers.1.block.0.conv.weight has shape [6, 6, 3, 3]"),
        ({"flow_coupling": "additive"}, "flow.layers.1.block.4.logs has shape [12, 1, 1]"),
        ({"LU_decomposed": False}, "flow.layers.1.invconv.lower of shape [12, 12] is unexpected"),
        ({"flow_permutation": "reverse"}, "flow.layers.1.invconv.lower of shape [12, 12] is unexpected"),
        ({"learn_top": False}, "learn_top_fn.logs of shape [48, 1, 1] is unexpected"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_first_key_that_differs(
    wrong: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = public_model("y0ast")
    arguments = write_arguments(tmp_path, model, **wrong)
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"key {key}")):
        IMPORTS["y0ast"](weights_of(model), tmp_path / "public.pt", arguments)


def test_actnorm_scale_and_y_classes_make_no_difference(tmp_path: Path) -> None:
    model = public_model("y0ast")
    for changes in ({}, {"actnorm_scale": 2, "y_classes": 40}):
        paths = write_public(tmp_path, model, **changes)
        assert_same_likelihood(import_public("y0ast", *paths).glow, model)


@pytest.mark.parametrize("learn_top", [True, False])
def test_the_top_prior_depends_on_prior_h(learn_top: bool, tmp_path: Path) -> None:
    model = public_model("y0ast", learn_top=learn_top)
    model.get_buffer("prior_h").copy_(torch.linspace(-0.5, 0.5, 192).reshape(1, 48, 2, 2))
    glow = import_public("y0ast", *write_public(tmp_path, model)).glow
    assert_same_likelihood(glow, model, rtol=1e-7)  # the file has float32 values


def test_a_step_that_cannot_be_inverted_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint, arguments = write_public(tmp_path, public_model("y0ast", LU_decomposed=False))
    change_weights(checkpoint, **{"flow.layers.5.invconv.weight": torch.zeros(24, 24)})
    with pytest.raises(NotInvertibleError, match=r"level2\.step1: .*condition number inf.*bound is 1e\+06"):
        import_public("y0ast", checkpoint, arguments)

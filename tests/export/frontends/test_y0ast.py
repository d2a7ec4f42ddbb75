"""What is particular to checkpoints of y0ast/Glow-PyTorch."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError, NotInvertibleError
from glowserve_export.frontends.public import import_public
from glowserve_export.folded_reference import FoldedReference

from tests.export.public_models import PublicModel

MakePublic = Callable[..., PublicModel]
WritePublic = Callable[..., tuple[Path, Path]]


def _set(path: Path, **weights: Any) -> None:
    torch.save(torch.load(path, weights_only=True) | weights, path)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"y_condition": True}, "y_condition is true, and class-conditional models are not supported"),
        ({"flow_permutation": "shuffle"}, "'shuffle', and its random orders of channels are not saved"),
        ({"flow_permutation": "none"}, "flow_permutation is 'none'; it must be invconv or reverse"),
        ({"flow_coupling": "spline"}, "flow_coupling is 'spline'; it must be affine or additive"),
        ({"image_shape": [8, 16, 3]}, "image_shape is [8, 16, 3]; only square images are supported"),
        ({"image_shape": [8, 8, 4]}, "images with 4 channels; 1 (grey) and 3 (RGB) are supported"),
        (
            {"image_shape": [6, 6, 3]},
            "6 x 6 pixels cannot be halved 2 times; their size must be a multiple of 4",
        ),
    ],
    ids=str,
)
def test_models_that_are_not_supported_are_refused(
    wrong: dict[str, Any], said: str, public_model: MakePublic, write_public: WritePublic
) -> None:
    with pytest.raises(ArgumentsError, match=re.escape(said)):
        import_public("y0ast", *write_public(public_model("y0ast"), **wrong))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"K": 3}, "flow.layers.3.conv.logs of shape [12, 1, 1] is left over"),
        ({"K": 1}, "flow.layers.2.actnorm.bias of shape [1, 12, 1, 1] is left over"),
        ({"L": 1}, "prior_h has shape [1, 48, 2, 2], and the arguments imply [1, 24, 4, 4]"),
        (
            {"image_shape": [16, 16, 3]},
            "prior_h has shape [1, 48, 2, 2], and the arguments imply [1, 48, 4, 4]",
        ),
        ({"hidden_channels": 7}, "flow.layers.1.block.0.conv.weight has shape [6, 6, 3, 3]"),
        ({"flow_coupling": "additive"}, "flow.layers.1.block.4.logs has shape [12, 1, 1]"),
        ({"LU_decomposed": False}, "flow.layers.1.invconv.lower of shape [12, 12] is left over"),
        ({"flow_permutation": "reverse"}, "flow.layers.1.invconv.lower of shape [12, 12] is left over"),
        ({"learn_top": False}, "learn_top_fn.logs of shape [48, 1, 1] is left over"),
    ],
    ids=str,
)
def test_wrong_arguments_are_found_by_the_first_key_that_does_not_fit(
    wrong: dict[str, Any], key: str, public_model: MakePublic, write_public: WritePublic
) -> None:
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"key {key}")):
        import_public("y0ast", *write_public(public_model("y0ast"), **wrong))


def test_the_scale_that_actnorms_began_with_and_the_classes_make_no_difference(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    model = public_model("y0ast")
    images, noise = np.full((1, 8, 8, 3), 77, np.uint8), np.full((1, 8, 8, 3), 0.25, np.float32)
    for arguments in ({}, {"actnorm_scale": 2, "y_classes": 40}):
        glow = import_public("y0ast", *write_public(model, **arguments)).glow
        ours = FoldedReference(glow).log_likelihood(images, noise)
        np.testing.assert_allclose(ours, model.flowed(images, noise, 8).log_density.numpy(), rtol=1e-11)


@pytest.mark.parametrize("learn_top", [True, False])
def test_the_top_prior_begins_at_what_the_checkpoint_holds(
    learn_top: bool, public_model: MakePublic, write_public: WritePublic
) -> None:
    model = public_model("y0ast", learn_top=learn_top)
    model.get_buffer("prior_h").copy_(torch.linspace(-0.5, 0.5, 192).reshape(1, 48, 2, 2))
    glow = import_public("y0ast", *write_public(model)).glow
    images, noise = np.full((1, 8, 8, 3), 77, np.uint8), np.full((1, 8, 8, 3), 0.25, np.float32)
    ours = FoldedReference(glow).log_likelihood(images, noise)
    theirs = model.flowed(images, noise, 8).log_density.numpy()
    np.testing.assert_allclose(ours, theirs, rtol=1e-7)  # the file holds float32


def test_a_step_that_cannot_be_inverted_is_refused_by_name(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(public_model("y0ast", LU_decomposed=False))
    _set(checkpoint, **{"flow.layers.5.invconv.weight": torch.zeros(24, 24)})
    with pytest.raises(NotInvertibleError, match=r"level2\.step1: .*condition number inf.*bound is 1e\+06"):
        import_public("y0ast", checkpoint, arguments)

"""Checkpoints of rosinality/glow-pytorch: what only this implementation has."""

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


def test_the_last_block_is_read_whether_or_not_it_obeys_conv_lu(tmp_path: Path) -> None:
    for obeys, key in ((True, "weight"), (False, "w_l")):
        model = public_model("rosinality", conv_lu=False, last_block_obeys=obeys)
        assert f"blocks.1.flows.0.invconv.{key}" in model.state_dict()
        assert_same_likelihood(import_public("rosinality", *write_public(tmp_path, model)).glow, model)


def test_only_the_last_block_may_disobey_conv_lu(tmp_path: Path) -> None:
    for conv_lu, key in ((True, r"w_l of shape \[12, 12\]"), (False, "w")):
        model = public_model("rosinality", conv_lu=conv_lu)
        arguments = write_arguments(tmp_path, model, conv_lu=not conv_lu)
        with pytest.raises(ForeignCheckpointError, match=rf"key blocks\.0\.flows\.0\.invconv\.{key}"):
            IMPORTS["rosinality"](weights_of(model), tmp_path / "public.pt", arguments)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"n_flow": 3}, "blocks.0.flows.2.actnorm.loc is missing"),
        ({"n_flow": 1}, "blocks.0.flows.1.actnorm.loc of shape [1, 12, 1, 1] is unexpected"),
        (
            {"n_block": 3},
            "blocks.1.prior.scale has shape [1, 48, 1, 1], and the arguments imply [1, 24, 1, 1]",
        ),
        (
            {"n_block": 1},
            "blocks.0.prior.scale has shape [1, 12, 1, 1], and the arguments imply [1, 24, 1, 1]",
        ),
        ({"affine": False}, "blocks.0.flows.0.coupling.net.4.scale has shape [1, 12, 1, 1]"),
        ({"in_channel": 1}, "blocks.0.flows.0.actnorm.loc has shape [1, 12, 1, 1]"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_first_key_that_differs(
    wrong: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = public_model("rosinality")
    arguments = write_arguments(tmp_path, model, **wrong)
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"key {key}")):
        IMPORTS["rosinality"](weights_of(model), tmp_path / "public.pt", arguments)


def test_a_version_that_does_not_save_initialized_is_read(tmp_path: Path) -> None:
    model = public_model("rosinality")
    weights = {key: x for key, x in weights_of(model).items() if not key.endswith(".initialized")}
    arguments = write_arguments(tmp_path, model)
    public = IMPORTS["rosinality"](weights, tmp_path / "public.pt", arguments)
    assert public.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_an_actnorm_that_is_not_initialized_is_refused(tmp_path: Path) -> None:
    checkpoint, arguments = write_public(tmp_path, public_model("rosinality"))
    change_weights(checkpoint, **{"blocks.1.flows.0.actnorm.initialized": torch.tensor(0, dtype=torch.uint8)})
    with pytest.raises(
        ForeignCheckpointError,
        match=r"blocks\.1\.flows\.0\.actnorm\.initialized is 0.* a model that was trained",
    ):
        import_public("rosinality", checkpoint, arguments)


@pytest.mark.parametrize("key", ["actnorm.scale", "invconv.weight"])
def test_a_step_that_cannot_be_inverted_is_refused_by_name(key: str, tmp_path: Path) -> None:
    model = public_model("rosinality", conv_lu=False, last_block_obeys=True)
    checkpoint, arguments = write_public(tmp_path, model)
    key = f"blocks.1.flows.1.{key}"
    singular = model.state_dict()[key].clone()
    singular[:, 1] = 0
    change_weights(checkpoint, **{key: singular})
    with pytest.raises(
        NotInvertibleError, match=r"level2\.step2: .*condition number (inf|.*e\+1\d), and the bound is 1e\+06"
    ):
        import_public("rosinality", checkpoint, arguments)


def test_a_matrix_that_overflows_is_refused_by_name(tmp_path: Path) -> None:
    checkpoint, arguments = write_public(tmp_path, public_model("rosinality"))
    change_weights(checkpoint, **{"blocks.0.flows.1.invconv.w_s": torch.full((12,), 1000.0)})
    with pytest.raises(NotInvertibleError, match=r"level1\.step2: .*condition number inf"):
        import_public("rosinality", checkpoint, arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"in_channel": 5}, "images have 5 channels; 1 to 4 are supported"),
        ({"image_size": 10}, "images of 10 x 10 pixels cannot be halved 2 times, once for each level; "),
    ],
    ids=str,
)
def test_unsupported_images_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = write_arguments(tmp_path, public_model("rosinality"), **wrong)
    with pytest.raises(ArgumentsError, match=re.escape(message)):
        IMPORTS["rosinality"]({}, tmp_path / "public.pt", arguments)

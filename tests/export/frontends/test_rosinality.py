"""What is particular to checkpoints of rosinality/glow-pytorch."""

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


def test_the_last_block_is_read_whether_or_not_it_heeds_the_flag(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    for heeds, key in ((True, "weight"), (False, "w_l")):
        model = public_model("rosinality", conv_lu=False, last_block_heeds=heeds)
        assert f"blocks.1.flows.0.invconv.{key}" in model.state_dict()
        public = import_public("rosinality", *write_public(model))
        images = np.full((1, 8, 8, 3), 77, np.uint8)
        noise = np.full(images.shape, 0.25, np.float32)
        ours = FoldedReference(public.glow).log_likelihood(images, noise)
        np.testing.assert_allclose(ours, model.flowed(images, noise, 8).log_density.numpy(), rtol=1e-11)


def test_only_the_last_block_may_differ_from_the_flag(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    model = public_model("rosinality", conv_lu=True)
    with pytest.raises(
        ForeignCheckpointError, match=r"key blocks\.0\.flows\.0\.invconv\.w_l of shape \[12, 12\]"
    ):
        import_public("rosinality", *write_public(model, conv_lu=False))
    model = public_model("rosinality", conv_lu=False)
    with pytest.raises(ForeignCheckpointError, match=r"key blocks\.0\.flows\.0\.invconv\.w"):
        import_public("rosinality", *write_public(model, conv_lu=True))


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"n_flow": 3}, "blocks.0.flows.2.actnorm.loc is missing"),
        ({"n_flow": 1}, "blocks.0.flows.1.actnorm.loc of shape [1, 12, 1, 1] is left over"),
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
def test_wrong_arguments_are_found_by_the_first_key_that_does_not_fit(
    wrong: dict[str, Any], key: str, public_model: MakePublic, write_public: WritePublic
) -> None:
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"key {key}")):
        import_public("rosinality", *write_public(public_model("rosinality"), **wrong))


def test_a_version_that_does_not_save_initialized_is_read(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    model = public_model("rosinality")
    checkpoint, arguments = write_public(model)
    weights = torch.load(checkpoint, weights_only=True)
    torch.save({key: x for key, x in weights.items() if not key.endswith(".initialized")}, checkpoint)
    public = import_public("rosinality", checkpoint, arguments)
    assert public.parameters == sum(parameter.numel() for parameter in model.parameters())


def test_a_model_that_has_seen_no_image_is_refused(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(public_model("rosinality"))
    _set(checkpoint, **{"blocks.1.flows.0.actnorm.initialized": torch.tensor(0, dtype=torch.uint8)})
    with pytest.raises(
        ForeignCheckpointError,
        match=r"blocks\.1\.flows\.0\.actnorm\.initialized is 0.* a model that was trained",
    ):
        import_public("rosinality", checkpoint, arguments)


@pytest.mark.parametrize("key", ["actnorm.scale", "invconv.weight"])
def test_a_step_that_cannot_be_inverted_is_refused_by_name(
    key: str, public_model: MakePublic, write_public: WritePublic
) -> None:
    model = public_model("rosinality", conv_lu=False, last_block_heeds=True)
    checkpoint, arguments = write_public(model)
    key = f"blocks.1.flows.1.{key}"
    singular = model.state_dict()[key].clone()
    singular[:, 1] = 0
    _set(checkpoint, **{key: singular})
    with pytest.raises(
        NotInvertibleError, match=r"level2\.step2: .*condition number (inf|.*e\+1\d), and the bound is 1e\+06"
    ):
        import_public("rosinality", checkpoint, arguments)


def test_a_matrix_that_overflows_is_refused_by_name(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(public_model("rosinality"))
    _set(checkpoint, **{"blocks.0.flows.1.invconv.w_s": torch.full((12,), 1000.0)})
    with pytest.raises(NotInvertibleError, match=r"level1\.step2: .*condition number inf"):
        import_public("rosinality", checkpoint, arguments)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"in_channel": 2}, "images with 2 channels; 1 (grey) and 3 (RGB) are supported"),
        ({"image_size": 10}, "10 x 10 pixels cannot be halved 2 times; their size must be a multiple of 4"),
    ],
    ids=str,
)
def test_images_that_are_not_supported_are_refused(
    wrong: dict[str, Any], said: str, public_model: MakePublic, write_public: WritePublic
) -> None:
    with pytest.raises(ArgumentsError, match=re.escape(said)):
        import_public("rosinality", *write_public(public_model("rosinality"), **wrong))

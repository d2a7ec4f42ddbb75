"""Checkpoints of chaiyujin/glow-pytorch: what only this implementation has."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.public import import_public

from tests.export.frontends.public_models import (
    IMPORTS,
    assert_same_likelihood,
    public_model,
    weights_of,
    write_arguments,
    write_public,
)


def test_the_hparams_of_its_training_script_are_understood(tmp_path: Path) -> None:
    """As its trainer dumps them: the arguments of the model are one section of many."""
    model = public_model("chaiyujin", flow_coupling="additive", learn_top=False)
    hparams = {
        "Dir": {"log_root": "results/celeba"},
        "Glow": {key: value for key, value in model.arguments.items() if key != "n_bits"},
        "Criterion": {"y_condition": "multi-classes"},
        "Data": {"center_crop": 160, "resize": 64},
        "Device": {"glow": ["cuda:0"], "data": "cuda:0"},
        "Train": {"batch_size": 12, "warm_start": ""},
    }
    arguments = tmp_path / "celeba.json"
    arguments.write_text(json.dumps(hparams))
    imported = IMPORTS["chaiyujin"](weights_of(model), tmp_path / "public.pt", arguments)
    assert_same_likelihood(imported.glow, model)


def test_its_trainers_file_is_read_with_the_numpy_values_of_its_optimizer(tmp_path: Path) -> None:
    """The learning rate of its schedule is a NumPy scalar; NumPy 1 has it in numpy.core."""
    model = public_model("chaiyujin")
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.Adam(parameters, lr=np.float64(1e-3))
    optimizer.param_groups[0]["rates"] = [np.float32(1), np.int64(2), np.zeros(3), np.bool_(True)]
    checkpoint, arguments = write_public(tmp_path, model)
    state = {"global_step": 7, "graph": weights_of(model), "optim": optimizer.state_dict(), "criterion": {}}
    torch.save(state, checkpoint)
    assert_same_likelihood(import_public("chaiyujin", checkpoint, arguments).glow, model)
    torch.save(state, checkpoint, _use_new_zipfile_serialization=False)
    old = checkpoint.read_bytes().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    checkpoint.write_bytes(old)
    assert_same_likelihood(import_public("chaiyujin", checkpoint, arguments).glow, model)


def test_a_weight_that_is_a_numpy_array_is_refused(tmp_path: Path) -> None:
    model = public_model("chaiyujin")
    checkpoint, arguments = write_public(tmp_path, model)
    torch.save({"graph": weights_of(model) | {"prior_h": np.zeros(3)}}, checkpoint)
    with pytest.raises(ForeignCheckpointError, match="the value of key 'prior_h' is a NumPyValue"):
        import_public("chaiyujin", checkpoint, arguments)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"flow_permutation": "shuffle"}, "a checkpoint does not contain its random permutations"),
        ({"flow_permutation": "none"}, "flow_permutation is 'none'; it must be invconv or reverse"),
        (
            {"y_condition": True},
            "y_condition is true, and class-conditional models of chaiyujin/glow-pytorch are not supported",
        ),
        ({"image_shape": [6, 8, 3]}, "6 x 8 pixels cannot be halved 2 times"),
        ({"n_bits": 5}, "n_bits is 5, and chaiyujin/glow-pytorch trains on 8 bits; leave it out"),
        ({"Glow": 3}, "Glow is 3; it must be an object of arguments"),
        ({"Glow": {"K": 2}}, "K is inside Glow and outside of it; leave one of them out"),
    ],
    ids=str,
)
def test_unsupported_models_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = public_model("chaiyujin")
    arguments = write_arguments(tmp_path, model, **wrong)
    with pytest.raises(ArgumentsError, match=re.escape(message)):
        IMPORTS["chaiyujin"](weights_of(model), tmp_path / "public.pt", arguments)


def test_a_file_of_the_version_that_did_not_save_the_lu_permutation_is_refused(tmp_path: Path) -> None:
    model = public_model("chaiyujin")
    weights = {key: x for key, x in weights_of(model).items() if not key.endswith((".p", ".sign_s"))}
    with pytest.raises(ForeignCheckpointError, match="before April 2019 the implementation did not save"):
        IMPORTS["chaiyujin"](weights, tmp_path / "public.pt", write_arguments(tmp_path, model))


def test_the_prior_has_a_row_for_each_image_of_a_training_batch(tmp_path: Path) -> None:
    model = public_model("chaiyujin")
    weights = weights_of(model)
    weights["prior_h"] = torch.zeros(12, *weights["prior_h"].shape[1:])
    arguments = write_arguments(tmp_path, model)
    assert_same_likelihood(IMPORTS["chaiyujin"](weights, tmp_path / "public.pt", arguments).glow, model)


def test_a_prior_that_the_implementation_itself_refuses_is_refused(tmp_path: Path) -> None:
    model = public_model("chaiyujin")
    weights = weights_of(model)
    weights["prior_h"] = torch.ones_like(weights["prior_h"])
    with pytest.raises(ForeignCheckpointError, match="prior_h is not 0"):
        IMPORTS["chaiyujin"](weights, tmp_path / "public.pt", write_arguments(tmp_path, model))


def test_the_likelihood_differs_from_its_own_by_the_width_of_the_noise(shared_data: Path) -> None:
    """Its x is u/255 + noise/256, which leaves a gap of 1/255 - 1/256 between grey values; ours is (u + noise)/255."""
    for name in ("chaiyujin-lu-affine-learn-top", "chaiyujin-plain-affine"):
        path = shared_data / "public-checkpoints" / name
        expected = np.load(path.with_suffix(".npz"))
        images, noise, own = expected["image"], expected["noise"], expected["log_likelihood"]
        glow = import_public("chaiyujin", path.with_suffix(".pt"), path.with_suffix(".json")).glow
        reference = FoldedReference(glow)
        gap = glow.dimensions * math.log(256 / 255)
        same_x = reference.log_likelihood(images, noise * np.float64(255 / 256))
        np.testing.assert_allclose(same_x - gap, own, rtol=1e-10)

        bit = glow.dimensions * math.log(2)
        assert np.abs(reference.log_likelihood(images, noise) - own).max() / bit < 0.006
        assert 0.02 < np.abs(expected["log_likelihood_x256"] - own).max() / bit < 0.06

"""Checkpoints of normflows: what only this implementation has."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError
from glowserve_export.frontends.normflows_bases import class_prior
from glowserve_export.frontends.public import import_public

from tests.export.frontends.public_model import PublicModel
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
        ({"scale_map": "tanh"}, "scale_map is 'tanh'; it must be sigmoid or sigmoid_inv or exp"),
        ({"scale_map": None}, "argument 'scale_map' is missing; add the value that the model was built with"),
        ({"split_mode": "checkerboard"}, "couplings of a checkerboard are not supported"),
        ({"split_mode": "checkerboard_inv"}, "couplings of a checkerboard are not supported"),
        ({"split_mode": "half"}, "split_mode is 'half'; it must be channel or channel_inv"),
        ({"transform": "Logit"}, "transform is 'Logit'; it must be Shift"),
        ({"leaky": 0.1}, "leaky is 0.1, and only networks with ReLU are supported"),
        ({"input_shape": [5, 8, 8]}, "images have 5 channels; 1 to 4 are supported"),
        ({"input_shape": [3, 8, 6]}, "8 x 6 pixels cannot be halved 2 times"),
        ({"input_shape": [3, 6, 6]}, "6 x 6 pixels cannot be halved 2 times"),
        ({"implementation": "y0ast/Glow-PyTorch"}, "check --from and --config"),
    ],
    ids=str,
)
def test_unsupported_models_are_refused(wrong: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = public_model("normflows")
    arguments = write_arguments(tmp_path, model, **wrong)
    with pytest.raises(ArgumentsError, match=re.escape(message)):
        IMPORTS["normflows"](weights_of(model), tmp_path / "public.pt", arguments)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"K": 3}, "flows.0.2.flows.0.flows.1.param_map.net.0.weight is missing"),
        (
            {"L": 1, "input_shape": [3, 4, 4]},
            "q0.0.loc has shape [1, 24, 2, 2], and the arguments imply [1, 12, 2, 2]",
        ),
        ({"hidden_channels": 7}, "flows.0.0.flows.0.flows.1.param_map.net.0.weight has shape [6, 12, 3, 3]"),
        ({"scale": False}, "flows.0.0.flows.0.flows.1.param_map.net.4.weight has shape [24, 6, 3, 3]"),
        ({"use_lu": False}, "flows.0.0.flows.1.L of shape [24, 24] is unexpected"),
        ({"net_actnorm": True}, "flows.0.0.flows.0.flows.1.param_map.net.0.bias of shape [6] is unexpected"),
        ({"base": "GlowBase"}, "q0.0.loc has shape [1, 24, 2, 2], and the arguments imply [1, 24, 1, 1]"),
        (
            {"input_shape": [3, 16, 16]},
            "q0.0.loc has shape [1, 24, 2, 2], and the arguments imply [1, 24, 4, 4]",
        ),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused_with_the_first_key_that_differs(
    wrong: dict[str, Any], key: str, tmp_path: Path
) -> None:
    model = public_model("normflows")
    with pytest.raises(ForeignCheckpointError, match=re.escape(f"key {key}")) as error:
        IMPORTS["normflows"](
            weights_of(model), tmp_path / "public.pt", write_arguments(tmp_path, model, **wrong)
        )
    assert f" {next(iter(wrong))} is " in str(error.value)


def test_the_size_of_images_must_be_given_where_no_prior_has_it(tmp_path: Path) -> None:
    model = public_model("normflows", bases=("GlowBase",))
    arguments = tmp_path / "public.json"
    arguments.write_text('{"n_bits": 8, "scale_map": "sigmoid"}')
    with pytest.raises(ArgumentsError, match="argument 'input_shape' is missing"):
        IMPORTS["normflows"](weights_of(model), tmp_path / "public.pt", arguments)
    arguments.write_text('{"n_bits": 8, "scale_map": "sigmoid", "input_shape": [3, 8, 8]}')
    imported = IMPORTS["normflows"](weights_of(model), tmp_path / "public.pt", arguments)
    assert_same_likelihood(imported.glow, model)


def test_null_means_that_an_argument_is_not_given(tmp_path: Path) -> None:
    model = public_model("normflows", scale=False)
    nothing = dict.fromkeys(("scale_map", "base", "logscale_factor", "transform", "num_classes"))
    paths = write_public(tmp_path, model, **nothing)
    assert_same_likelihood(import_public("normflows", *paths).glow, model)


@pytest.mark.parametrize(
    ("base", "message"),
    [
        (
            {"transform.s": (1, 24, 1, 1), "transform.t": (1, 24, 1, 1), "transform.s_cc": (10, 24, 1, 1)},
            r"q0\.0 is a class-conditional AffineGaussian, which is not supported",
        ),
        (
            {"loc": (24, 2, 2, 1), "log_scale": (24, 2, 2, 1)},
            "its base distributions have 1 classes; all must have the same number, 2 to 1000",
        ),
    ],
    ids=["AffineGaussian", "one class"],
)
def test_some_class_conditional_bases_are_refused(
    base: dict[str, tuple[int, ...]], message: str, tmp_path: Path
) -> None:
    model = public_model("normflows")
    with pytest.raises(ForeignCheckpointError, match=message):
        IMPORTS["normflows"](with_base(model, base), tmp_path / "public.pt", write_arguments(tmp_path, model))


def test_classes_of_a_glow_base_add_to_its_mean_and_log_scale() -> None:
    mean, log_scale, of_mean, of_log_scale = np.random.default_rng(0).normal(size=(4, 5, 24))
    weights = {
        "q0.0.loc": mean[:1, :, None, None],
        "q0.0.log_scale": log_scale[:1, :, None, None],
        "q0.0.loc_logs": np.zeros((1, 24, 1, 1)),
        "q0.0.log_scale_logs": np.zeros((1, 24, 1, 1)),
        "q0.0.loc_cc": of_mean,
        "q0.0.log_scale_cc": of_log_scale,
    }
    prior = class_prior("GlowBase with num_classes", weights, "q0.0", 3.0)
    assert prior is not None
    np.testing.assert_allclose(prior.mean[:, :, 0, 0], mean[:1] + of_mean)
    np.testing.assert_allclose(prior.log_scale[:, :, 0, 0], log_scale[:1] + of_log_scale)


def with_base(model: PublicModel, base: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """The weights of a model with zeros for another base of its top level."""
    weights = {key: x for key, x in weights_of(model).items() if not key.startswith("q0.0.")}
    return weights | {f"q0.0.{key}": torch.zeros(shape) for key, shape in base.items()}


@pytest.mark.parametrize("keys", [(), ("weight_scores", "loc", "log_scale")], ids=["Uniform", "a mixture"])
def test_a_base_that_is_no_gaussian_is_refused(keys: tuple[str, ...], tmp_path: Path) -> None:
    model = public_model("normflows")
    weights = {key: x for key, x in weights_of(model).items() if not key.startswith("q0.1.")}
    weights |= {f"q0.1.{key}": torch.zeros(1, 4) for key in keys}
    with pytest.raises(ForeignCheckpointError, match=r"q0\.1 has .*DiagGaussian, GlowBase, .*AffineGaussian"):
        IMPORTS["normflows"](weights, tmp_path / "public.pt", write_arguments(tmp_path, model))


def test_an_actnorm_that_is_not_initialized_is_refused(tmp_path: Path) -> None:
    for net_actnorm, key in (
        (False, "flows.0.1.flows.2"),
        (True, "flows.0.1.flows.0.flows.1.param_map.net.1.actNorm"),
    ):
        checkpoint, arguments = write_public(tmp_path, public_model("normflows", net_actnorm=net_actnorm))
        change_weights(checkpoint, **{f"{key}.data_dep_init_done": torch.tensor(0.0)})
        with pytest.raises(ForeignCheckpointError, match=rf"{re.escape(key)}\.data_dep_init_done is 0"):
            import_public("normflows", checkpoint, arguments)


def test_a_version_that_does_not_save_whether_actnorms_are_initialized_is_read(tmp_path: Path) -> None:
    model = public_model("normflows")
    weights = {key: x for key, x in weights_of(model).items() if not key.endswith("init_done")}
    arguments = write_arguments(tmp_path, model)
    imported = IMPORTS["normflows"](weights, tmp_path / "public.pt", arguments)
    assert_same_likelihood(imported.glow, model)


def test_a_fixed_base_has_no_trained_parameters(tmp_path: Path) -> None:
    model = public_model("normflows")
    arguments = write_arguments(tmp_path, model, base_trainable=False)
    imported = IMPORTS["normflows"](weights_of(model), tmp_path / "public.pt", arguments)
    fixed = sum(parameter.numel() for parameter in model.q0.parameters())  # type: ignore[operator, union-attr]
    assert imported.parameters == sum(parameter.numel() for parameter in model.parameters()) - fixed

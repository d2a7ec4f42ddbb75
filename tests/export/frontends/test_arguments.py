"""The arguments of a public implementation's model: what is given, and what keys and shapes tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from glowserve_export.errors import ArgumentsError, ExportError, ForeignCheckpointError
from glowserve_export.frontends.public import IMPLEMENTATIONS

from tests.export.frontends.public_model import PublicModel
from tests.export.frontends.public_models import (
    IMPORTS,
    assert_same_likelihood,
    public_model,
    weights_of,
    write_arguments,
)


@pytest.fixture(scope="module", params=["rosinality", "y0ast", "chaiyujin", "normflows"])
def model(request: pytest.FixtureRequest) -> PublicModel:
    """A small model of each implementation."""
    kind: str = request.param
    return public_model(kind)


def _refusal(model: PublicModel, arguments: Path) -> str:
    """The error message. No weights are needed: arguments are checked first."""
    with pytest.raises(ArgumentsError) as error:
        IMPORTS[model.kind]({}, arguments.with_name("public.pt"), arguments)
    message = str(error.value)
    assert str(arguments) in message
    return message


def test_an_argument_that_neither_file_tells_is_refused(model: PublicModel, tmp_path: Path) -> None:
    needed = {
        "rosinality": ["image_size", "n_bits"],
        "y0ast": ["image_shape", "K", "flow_permutation"],
        "chaiyujin": ["image_shape", "K", "flow_permutation"],
        "normflows": ["input_shape", "K", "n_bits"],
    }
    for name in needed[model.kind]:
        arguments = tmp_path / "public.json"
        arguments.write_text(json.dumps({key: x for key, x in model.arguments.items() if key != name}))
        assert f"argument '{name}' is missing; add the value" in _refusal(model, arguments)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("rosinality", {}),
        ("rosinality", {"affine": False, "in_channel": 1, "n_flow": 1, "n_block": 3}),
        ("rosinality", {"conv_lu": False, "last_block_obeys": True}),
        ("rosinality", {"conv_lu": False, "last_block_obeys": False}),
        ("y0ast", {}),
        ("y0ast", {"flow_coupling": "additive", "K": 3, "L": 1, "hidden_channels": 4}),
        ("y0ast", {"LU_decomposed": False, "learn_top": False, "L": 3, "K": 1}),
        ("y0ast", {"image_shape": (16, 16, 1)}),
        ("chaiyujin", {}),
        ("chaiyujin", {"flow_coupling": "additive", "K": 3, "L": 1, "LU_decomposed": False}),
        ("normflows", {}),
        ("normflows", {"scale": False, "use_lu": False, "L": 1, "K": 3, "input_shape": (1, 16, 16)}),
        ("normflows", {"net_actnorm": True, "L": 3, "bases": ("GlowBase", "DiagGaussian")}),
    ],
    ids=str,
)
def test_shapes_tell_all_but_image_size_and_bits(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = public_model(kind, **options)
    untold = ("image_size", "n_bits", "scale_map")
    needed = {name: model.arguments[name] for name in untold if name in model.arguments}
    arguments = tmp_path / "public.json"
    arguments.write_text(json.dumps(needed))
    assert_same_likelihood(IMPORTS[kind](weights_of(model), tmp_path / "public.pt", arguments).glow, model)


def test_the_hparams_of_y0asts_training_script_are_understood(tmp_path: Path) -> None:
    """As train.py writes them: every flag, most of which have nothing to do with the model."""
    for permutation in ("invconv", "reverse"):
        model = public_model("y0ast", flow_permutation=permutation, flow_coupling="additive")
        flags = ("hidden_channels", "K", "L", "actnorm_scale", "flow_permutation", "flow_coupling")
        hparams = {name: model.arguments[name] for name in (*flags, "LU_decomposed", "learn_top")} | {
            **{"dataset": "cifar10", "dataroot": "./", "download": True, "augment": True, "batch_size": 64},
            **{"eval_batch_size": 512, "epochs": 250, "saved_model": "", "seed": 0, "y_condition": False},
            **{
                "y_weight": 0.01,
                "max_grad_clip": 0,
                "max_grad_norm": 0,
                "lr": 5e-4,
                "n_workers": 6,
                "cuda": True,
            },
            **{"n_init_batches": 8, "output_dir": "output/", "saved_optimizer": "", "warmup": 5},
        }
        arguments = tmp_path / "hparams.json"
        arguments.write_text(json.dumps(hparams))
        imported = IMPORTS["y0ast"](weights_of(model), tmp_path / "public.pt", arguments)
        assert imported.glow.n_bits == 8
        assert_same_likelihood(imported.glow, model)


def test_the_flags_of_rosinalitys_training_script_are_understood(tmp_path: Path) -> None:
    model = public_model("rosinality", conv_lu=False, last_block_obeys=True, n_bits=5)
    flags = {
        "batch": 16,
        "iter": 200000,
        "n_flow": 2,
        "n_block": 2,
        "no_lu": True,
        "affine": True,
        "n_bits": 5,
    }
    flags |= {"lr": 1e-4, "img_size": 8, "temp": 0.7, "n_sample": 20, "path": "celeba/"}
    arguments = tmp_path / "public.json"
    arguments.write_text(json.dumps(flags))
    imported = IMPORTS["rosinality"](weights_of(model), tmp_path / "public.pt", arguments)
    assert (imported.glow.image_size.stored, imported.glow.n_bits, imported.parametrization) == (
        8,
        5,
        "plain",
    )
    assert_same_likelihood(imported.glow, model)
    for twice, name in (({"image_size": 16}, "image_size"), ({"conv_lu": True}, "conv_lu")):
        arguments.write_text(json.dumps(flags | twice))
        assert f"contradicts another argument, {name}; leave" in _refusal(model, arguments)


def test_an_argument_that_shapes_contradict_is_named(tmp_path: Path) -> None:
    wrong = {
        "rosinality": {"n_flow": 3, "affine": False, "in_channel": 1, "n_block": 1, "filter_size": 64},
        "y0ast": {
            "K": 3,
            "L": 1,
            "image_shape": [16, 16, 3],
            "learn_top": False,
            "flow_coupling": "additive",
        },
    }
    for kind, arguments in wrong.items():
        model = public_model(kind)
        for name, value in arguments.items():
            path = write_arguments(tmp_path, model, **{name: value})
            with pytest.raises(ForeignCheckpointError) as error:
                IMPORTS[kind](weights_of(model), tmp_path / "public.pt", path)
            assert f" {name} is {json.dumps(value)}, and the checkpoint's keys and shapes tell" in str(
                error.value
            )


def test_a_class_conditional_checkpoint_is_refused_without_arguments(tmp_path: Path) -> None:
    weights = weights_of(public_model("chaiyujin")) | {"project_ycond.weight": torch.zeros(96, 10)}
    (tmp_path / "public.json").write_text("{}")
    with pytest.raises(ArgumentsError, match="y_condition is true"):
        IMPORTS["chaiyujin"](weights, tmp_path / "public.pt", tmp_path / "public.json")


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("rosinality", {"n_flow": 10**15}),
        ("rosinality", {"n_block": 10**15, "image_size": 8}),
        ("rosinality", {"image_size": 2**40}),
        ("y0ast", {"K": 10**15}),
        ("y0ast", {"L": 10**15}),
        ("y0ast", {"hidden_channels": 10**15}),
        ("chaiyujin", {"K": 10**15}),
        ("normflows", {"K": 10**15}),
        ("normflows", {"L": 10**15}),
        ("normflows", {"input_shape": [3, 2**40, 2**40]}),
    ],
    ids=str,
)
def test_arguments_of_any_size_are_refused_at_once(
    kind: str, arguments: dict[str, int], tmp_path: Path
) -> None:
    model = public_model(kind)
    with pytest.raises(ExportError):
        IMPORTS[kind](
            weights_of(model), tmp_path / "public.pt", write_arguments(tmp_path, model, **arguments)
        )


def test_an_argument_of_another_type_is_refused(model: PublicModel, tmp_path: Path) -> None:
    for name, value in model.arguments.items():
        if value is None:
            continue
        wrong: list[Any] = [{}, [1, 2], [1, 2, "3"]]
        if model.kind != "normflows":
            wrong.append(None)
        if not isinstance(value, str):
            wrong.append("2")
        if isinstance(value, bool):
            wrong.append(1)
        elif not isinstance(value, float):
            wrong += [True, 0, -1, 1.5]
        for other in wrong:
            message = _refusal(model, write_arguments(tmp_path, model, **{name: other}))
            assert f"{name} is {json.dumps(other)}; it must be " in message


def test_a_misspelt_argument_is_refused_with_the_known_ones(model: PublicModel, tmp_path: Path) -> None:
    for misspelt, meant in {"n_bit": "n_bits", "n-bits": "n_bits"}.items():
        message = _refusal(model, write_arguments(tmp_path, model, **{misspelt: 3}))
        assert f"has no argument '{misspelt}'; did you mean '{meant}'? Its arguments are " in message
        assert all(name in message for name in model.arguments)


def test_more_than_8_bits_are_refused(model: PublicModel, tmp_path: Path) -> None:
    message = _refusal(model, write_arguments(tmp_path, model, n_bits=9))
    assert "n_bits is 9; it must be 1 to 8" in message


def test_arguments_of_the_other_implementation_are_refused(model: PublicModel, tmp_path: Path) -> None:
    arguments = write_arguments(tmp_path, model, implementation=IMPLEMENTATIONS[model.kind])
    assert IMPORTS[model.kind](weights_of(model), tmp_path / "public.pt", arguments)
    other = IMPLEMENTATIONS["y0ast" if model.kind == "rosinality" else "rosinality"]
    message = _refusal(model, write_arguments(tmp_path, model, implementation=other))
    assert other in message
    assert "check --from and --config" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\xfd", "cannot be read as JSON"),
        (b"[]", "are not a JSON object"),
        (b"[" * 200_000, "cannot be read as JSON"),
        (b" " * 2**21, "are larger than 1048576 bytes"),
        (None, "there is no such file; give a JSON file with --config"),
    ],
    ids=["cut off", "not text", "a list", "nested too deep", "too large", "no file"],
)
def test_a_file_that_is_not_a_json_object_is_refused(
    content: bytes | None, expected: str, model: PublicModel, tmp_path: Path
) -> None:
    arguments = tmp_path / "public.json"
    if content is not None:
        arguments.write_bytes(content)
    assert expected in _refusal(model, arguments)

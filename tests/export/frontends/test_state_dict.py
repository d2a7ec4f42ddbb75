"""Reading the state_dict of a public implementation."""

from __future__ import annotations

import argparse
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from glowserve_export.errors import ForeignCheckpointError, NotInvertibleError
from glowserve_export.frontends.public import import_public

from tests.export.frontends.public_model import PublicModel
from tests.export.frontends.public_models import (
    IMPORTS,
    assert_same_likelihood,
    public_model,
    weights_of,
    write_arguments,
)

Weights = dict[Any, Any]


@pytest.fixture(scope="module", params=["rosinality", "y0ast", "chaiyujin", "normflows"])
def model(request: pytest.FixtureRequest) -> PublicModel:
    """A small model of each implementation."""
    kind: str = request.param
    return public_model(kind)


@pytest.fixture
def weights(model: PublicModel) -> Weights:
    return weights_of(model)


@pytest.fixture
def paths(model: PublicModel, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint that does not exist yet, and the model's arguments."""
    return tmp_path / "public.pt", write_arguments(tmp_path, model)


def _prefixed(prefix: str, weights: Weights) -> Weights:
    return {prefix + key: tensor for key, tensor in weights.items()}


# Files


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{key}": tensor for key, tensor in weights.items()},
        lambda weights: {"model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
        lambda weights: {"model": {f"module.{key}": tensor for key, tensor in weights.items()}},
        lambda weights: dict(reversed(weights.items())),
        lambda weights: {key: torch.nn.Parameter(x) if x.ndim else x for key, x in weights.items()},
        lambda weights: _prefixed("_orig_mod.", weights),
        lambda weights: _prefixed("module._orig_mod.", weights),
        lambda weights: _prefixed("_orig_mod.module.", weights),
        lambda weights: {"state_dict": _prefixed("model.", weights), "epoch": 3, "loops": {}},
        lambda weights: {"state_dict": _prefixed("model._orig_mod.module.model.", weights)},
        lambda weights: {"state_dict": _prefixed("flow.", weights)},
        lambda weights: {"ema": _prefixed("module.", weights), "step": 7},
        lambda weights: {"model": {"state_dict": weights}},
        lambda weights: {"graph": weights, "optim": {"state": {}}, "criterion": {}},
        lambda weights: {"model": {"width": 512}, "state_dict": weights},
        lambda weights: {"n_averaged": torch.tensor(5)} | _prefixed("module.", weights),
        lambda weights: {
            "state_dict": {"ema.n_averaged": torch.tensor(5)} | _prefixed("ema.module.", weights)
        },
        lambda weights: {"net": weights},
        lambda weights: {
            key.replace("blocks.0.", "blocks.0._orig_mod.").replace("layers.1.", "layers.1._orig_mod."): x
            for key, x in weights.items()
        },
    ],
    ids=[
        *("of DataParallel", "of ignite", "of both", "in another order", "of parameters"),
        *(
            "compiled",
            "compiled, then parallel",
            "parallel, then compiled",
            "of Lightning",
            "of everything",
            "of any name",
        ),
        *(
            "of an EMA",
            "two deep",
            "under graph",
            "beside a configuration",
            "of AveragedModel",
            "of AveragedModel in Lightning",
            "under net",
            "with compiled layers",
        ),
    ],
)
def test_a_state_dict_is_found_however_it_was_saved(
    wrap: Callable[[Weights], Any], model: PublicModel, weights: Weights, paths: tuple[Path, Path]
) -> None:
    torch.save(wrap(weights), paths[0])
    assert_same_likelihood(import_public(model.kind, *paths).glow, model)


class _Anything:
    """Any class: a checkpoint of a whole model could only be loaded by executing code."""


def _endless() -> dict[str, Any]:
    content: dict[str, Any] = {}
    content["model"] = content
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_Anything(), r"of class tests\S*_Anything: to load it would execute code"),
        (
            torch.nn.Sequential(torch.nn.ReLU()),
            r"is a whole pickled model, or .* of class torch\.nn\.modules",
        ),
        ({"state_dict": {}, "hparams": argparse.Namespace(K=2)}, r"of class argparse\.Namespace: to load"),
        (_endless(), "the value of key 'model' is a dict"),
        ([torch.zeros(1)], "contains no state_dict"),
        ({}, "contains no state_dict"),
        (torch.zeros(2), "contains no state_dict"),
        ({"mine": {"weight": torch.zeros(1)}}, "the value of key 'mine' is a dict and not a tensor"),
        ({3: torch.zeros(1)}, "its key 3 is not a string"),
    ],
    ids=[
        "an object",
        "a model",
        "with arguments",
        "of itself",
        "a list",
        "nothing",
        "a tensor",
        "nested",
        "numbered",
    ],
)
def test_a_file_without_a_state_dict_is_refused_with_the_way_to_write_one(
    content: Any, message: str, model: PublicModel, paths: tuple[Path, Path]
) -> None:
    torch.save(content, paths[0])
    with pytest.raises(ForeignCheckpointError, match=message) as error:
        import_public(model.kind, *paths)
    assert str(paths[0]) in str(error.value)
    assert "torch.save(model.state_dict(), PATH)" in str(error.value)


def test_a_pickled_model_in_the_old_format_of_torch_is_named(
    model: PublicModel, paths: tuple[Path, Path]
) -> None:
    torch.save(_Anything(), paths[0], _use_new_zipfile_serialization=False)
    with pytest.raises(ForeignCheckpointError, match=r"of class tests\S*_Anything: to load it would execute"):
        import_public(model.kind, *paths)


def test_a_torchscript_program_is_named(model: PublicModel, paths: tuple[Path, Path]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TorchScript is deprecated
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), paths[0])
        with pytest.raises(ForeignCheckpointError, match="is a TorchScript program and not a state_dict"):
            import_public(model.kind, *paths)


@pytest.mark.parametrize(
    "tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2, dtype=torch.complex64)], ids=str
)
def test_a_weight_that_is_not_dense_and_real_is_refused(
    tensor: torch.Tensor, model: PublicModel, weights: Weights, paths: tuple[Path, Path]
) -> None:
    key = next(iter(weights))
    torch.save(weights | {key: tensor}, paths[0])
    with pytest.raises(
        ForeignCheckpointError, match=f"{re.escape(key)} is a torch.* and weights are dense and real"
    ):
        import_public(model.kind, *paths)


def test_two_sets_of_weights_are_refused_with_the_way_to_choose(
    model: PublicModel, weights: Weights, paths: tuple[Path, Path]
) -> None:
    torch.save({"model": weights, "ema": weights, "optimizer": {}}, paths[0])
    with pytest.raises(ForeignCheckpointError, match=r"under 'model' and 'ema'.*public\.pt'\)\['model'\]"):
        import_public(model.kind, *paths)
    torch.save(weights | _prefixed("module.", weights), paths[0])
    with pytest.raises(ForeignCheckpointError, match="contains some weights twice"):
        import_public(model.kind, *paths)


def test_a_damaged_or_missing_checkpoint_is_refused(
    model: PublicModel, weights: Weights, paths: tuple[Path, Path]
) -> None:
    torch.save(weights, paths[0])
    paths[0].write_bytes(paths[0].read_bytes()[:1000])
    with pytest.raises(
        ForeignCheckpointError, match=r"public\.pt cannot be read as a state_dict: it is damaged"
    ):
        import_public(model.kind, *paths)
    paths[0].unlink()
    with pytest.raises(ForeignCheckpointError, match=r"public\.pt: there is no such file"):
        import_public(model.kind, *paths)


# Keys and shapes


@pytest.fixture
def refusal(model: PublicModel, paths: tuple[Path, Path]) -> Callable[[Weights], str]:
    """Passes weights to the model's frontend and returns the error message."""

    def refuse(weights: Weights) -> str:
        with pytest.raises(ForeignCheckpointError) as error:
            IMPORTS[model.kind](weights, *paths)
        message = str(error.value)
        assert str(paths[0]) in message
        assert message.endswith("Check --config, and --from")
        return message

    return refuse


def test_a_missing_key_is_refused(weights: Weights, refusal: Callable[[Weights], str]) -> None:
    for key, tensor in weights.items():
        message = refusal({other: x for other, x in weights.items() if other != key})
        assert f"key {key} is missing; the arguments imply it, of shape {list(tensor.shape)}" in message


def test_a_wrong_shape_is_refused(weights: Weights, refusal: Callable[[Weights], str]) -> None:
    for key, tensor in weights.items():
        shape = list(tensor.shape)
        message = refusal(weights | {key: tensor[None]})
        assert f"key {key} has shape {[1, *shape]}, and the arguments imply {shape}" in message


def test_an_unexpected_key_is_refused(weights: Weights, refusal: Callable[[Weights], str]) -> None:
    message = refusal(weights | {"classifier.weight": torch.zeros(2, 3)})
    assert "key classifier.weight of shape [2, 3] is unexpected; the arguments imply no such key" in message


def test_the_first_difference_in_the_order_of_the_model_is_named(
    weights: Weights, refusal: Callable[[Weights], str]
) -> None:
    keys = list(weights)
    changed: Weights = {}
    for key, tensor in weights.items():
        changed[key] = tensor
        if key == keys[9]:
            changed["extra"] = torch.zeros(1)
    del changed[keys[20]]
    changed[keys[30]] = torch.zeros(7)
    assert "key extra of shape [1] is unexpected" in refusal(changed)
    del changed["extra"]
    assert f"key {keys[20]} is missing" in refusal(changed)
    changed[keys[3]] = torch.zeros(7)
    assert f"key {keys[3]} has shape [7]" in refusal(changed)


def test_a_checkpoint_of_another_implementation_is_refused_with_a_hint_at_from(tmp_path: Path) -> None:
    (tmp_path / "public.json").write_text("{}")
    for kind, other in (("rosinality", "normflows"), ("normflows", "y0ast"), ("y0ast", "rosinality")):
        weights = weights_of(public_model(other))
        with pytest.raises(ForeignCheckpointError, match=r"has no keys of a model of .*; check --from"):
            IMPORTS[kind](weights, tmp_path / "public.pt", tmp_path / "public.json")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(
    value: float, model: PublicModel, weights: Weights, paths: tuple[Path, Path]
) -> None:
    key = next(key for key in weights if key.endswith(".bias"))
    with pytest.raises(NotInvertibleError, match=f"weight {key} is not finite"):
        IMPORTS[model.kind](weights | {key: torch.full_like(weights[key], value)}, *paths)

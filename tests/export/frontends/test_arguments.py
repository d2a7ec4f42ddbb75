"""Reading the constructor arguments of a public implementation's model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from glowserve_export.errors import ArgumentsError

from tests.export.frontends.public_model import PublicModel
from tests.export.frontends.public_models import IMPORTS, public_model, weights_of, write_arguments


@pytest.fixture(scope="module", params=["rosinality", "y0ast"])
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


def test_a_missing_argument_is_refused(model: PublicModel, tmp_path: Path) -> None:
    for name in set(model.arguments) - {"n_bits"}:
        arguments = tmp_path / "public.json"
        arguments.write_text(json.dumps({key: x for key, x in model.arguments.items() if key != name}))
        assert f"argument '{name}' is missing; add the value" in _refusal(model, arguments)


def test_an_argument_of_another_type_is_refused(model: PublicModel, tmp_path: Path) -> None:
    for name, value in model.arguments.items():
        wrong: list[Any] = [None, {}, [1, 2], [1, 2, "3"]]
        if not isinstance(value, str):
            wrong.append("2")
        if isinstance(value, bool):
            wrong.append(1)
        elif not isinstance(value, float):
            wrong += [True, 0, -1, 1.5]
        for other in wrong:
            message = _refusal(model, write_arguments(tmp_path, model, **{name: other}))
            assert f"{name} is {json.dumps(other)}; it must be " in message


def test_an_unknown_argument_is_refused_with_the_known_ones(model: PublicModel, tmp_path: Path) -> None:
    message = _refusal(model, write_arguments(tmp_path, model, n_flows=3))
    assert "has no argument 'n_flows'; its arguments are " in message
    assert all(name in message for name in model.arguments)


def test_more_than_8_bits_are_refused(model: PublicModel, tmp_path: Path) -> None:
    message = _refusal(model, write_arguments(tmp_path, model, n_bits=9))
    assert "n_bits is 9; it must be 1 to 8" in message


def test_n_bits_is_optional_where_the_implementation_has_no_argument_for_it(tmp_path: Path) -> None:
    rosinality, y0ast = public_model("rosinality"), public_model("y0ast")
    for model in (rosinality, y0ast):
        arguments = tmp_path / f"{model.kind}.json"
        arguments.write_text(json.dumps({key: x for key, x in model.arguments.items() if key != "n_bits"}))
    message = _refusal(rosinality, tmp_path / "rosinality.json")
    assert "argument 'n_bits' is missing; add the value" in message
    imported = IMPORTS["y0ast"](weights_of(y0ast), tmp_path / "public.pt", tmp_path / "y0ast.json")
    assert imported.glow.n_bits == 8


def test_arguments_of_the_other_implementation_are_refused(model: PublicModel, tmp_path: Path) -> None:
    names = {"rosinality": "rosinality/glow-pytorch", "y0ast": "y0ast/Glow-PyTorch"}
    arguments = write_arguments(tmp_path, model, implementation=names[model.kind])
    assert IMPORTS[model.kind](weights_of(model), tmp_path / "public.pt", arguments)
    (other,) = set(names.values()) - {names[model.kind]}
    message = _refusal(model, write_arguments(tmp_path, model, implementation=other))
    assert other in message
    assert "check --from and --config" in message


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"{", "cannot be read as JSON"),
        (b"\xff\xfe\xfd", "cannot be read as JSON"),
        (b"[]", "are not a JSON object"),
        (None, "there is no such file; give a JSON file with --config"),
    ],
    ids=["cut off", "not text", "a list", "no file"],
)
def test_a_file_that_is_not_a_json_object_is_refused(
    content: bytes | None, expected: str, model: PublicModel, tmp_path: Path
) -> None:
    arguments = tmp_path / "public.json"
    if content is not None:
        arguments.write_bytes(content)
    assert expected in _refusal(model, arguments)

"""From checkpoints of public implementations to constants and graphs, measured by the models rewritten for it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_export.folded import FoldedGlow
from glowserve_export.errors import ArgumentsError, ForeignCheckpointError, NotInvertibleError
from glowserve_export.frontends.public import import_public
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.folded_reference import FoldedReference

from tests.export.public_models import PublicModel

MakePublic = Callable[..., PublicModel]
WritePublic = Callable[..., tuple[Path, Path]]

ROSINALITY = [
    {},
    {"affine": False, "n_block": 1, "in_channel": 1},
    {"conv_lu": False, "n_bits": 5},
    {"conv_lu": False, "last_block_heeds": True, "affine": False, "n_block": 3, "n_flow": 1, "n_bits": 3},
    {"conv_lu": True, "last_block_heeds": True, "in_channel": 1, "n_bits": 1, "image_size": 12},
]
Y0AST = [
    {},
    {"LU_decomposed": False, "n_bits": 5, "K": 3},
    {"flow_coupling": "additive", "learn_top": False, "L": 1, "image_shape": (8, 8, 1)},
    {"flow_permutation": "reverse", "L": 3, "K": 1, "n_bits": 2},
    {"flow_permutation": "reverse", "flow_coupling": "additive", "LU_decomposed": False},
    {"learn_top": False, "image_shape": (12, 12, 1)},
]
CASES = [("rosinality", case) for case in ROSINALITY] + [("y0ast", case) for case in Y0AST]
SAMPLES = [("rosinality", "rosinality-lu-affine-8bit"), ("y0ast", "y0ast-lu-affine")]


@pytest.fixture(params=CASES, ids=lambda case: "-".join([case[0], *(f"{k}={v}" for k, v in case[1].items())]))
def model(request: pytest.FixtureRequest, public_model: MakePublic) -> PublicModel:
    """A model of each kind."""
    kind, arguments = request.param
    return public_model(kind, **arguments)


@pytest.fixture
def glow(model: PublicModel, write_public: WritePublic) -> FoldedGlow:
    """Its constants."""
    return import_public(model.kind, *write_public(model)).glow


def _given(glow: FoldedGlow, n: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (n, glow.image_size, glow.image_size, glow.channels)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.random(shape, dtype=np.float32)


def _flat(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([part.flatten(1) for part in parts], dim=1).numpy()


def _in_bins(y: torch.Tensor, n_bits: int) -> np.ndarray:
    return (y.permute(0, 2, 3, 1).numpy() + 0.5) * 2**n_bits


def _z(glow: FoldedGlow, latent: np.ndarray) -> list[np.ndarray]:
    """What latents are before they are made standard normal, by level."""
    z = {}
    for name, x in FoldedReference(glow).reverse_layers(latent):
        if name == "top.z":
            z[len(glow.levels)] = x.numpy()
        elif name.endswith(".prior.joined"):
            z[int(name.removeprefix("level").partition(".")[0])] = x.tensor_split(2, dim=1)[1].numpy()
    return [z[level] for level in sorted(z)]


# What is computed


def test_constants_give_the_likelihoods_and_latents_of_the_model(
    model: PublicModel, glow: FoldedGlow, interpreter: Any
) -> None:
    images, noise = _given(glow)
    theirs = model.flowed(images, noise, glow.n_bits)
    ours = interpreter.forward(glow, images, noise)
    np.testing.assert_allclose(ours.log_likelihood, theirs.log_density.numpy(), rtol=1e-11)
    np.testing.assert_allclose(ours.latent, _flat(theirs.eps), rtol=1e-9, atol=1e-9)
    exact = FoldedReference(glow).log_likelihood(images, noise)
    np.testing.assert_allclose(exact, theirs.log_density.numpy(), rtol=1e-11)
    for level, z in enumerate(_z(glow, ours.latent)):
        np.testing.assert_allclose(z, theirs.z[level].numpy(), rtol=1e-9, atol=1e-9)


def test_constants_decode_as_the_model_does(model: PublicModel, glow: FoldedGlow, interpreter: Any) -> None:
    rng = np.random.default_rng(0)
    eps = [torch.from_numpy(rng.standard_normal((3, *shape))) for shape in glow.latent_shapes()]
    theirs = _in_bins(model.inverse(eps), glow.n_bits)
    np.testing.assert_allclose(interpreter.reverse(glow, _flat(eps)), theirs, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(FoldedReference(glow).pixels(_flat(eps)), theirs, rtol=1e-9, atol=1e-9)


def test_graphs_compute_what_the_model_does(
    model: PublicModel, glow: FoldedGlow, run_graph: Callable[..., dict[str, np.ndarray]]
) -> None:
    images, noise = _given(glow)
    theirs = model.flowed(images, noise, glow.n_bits)
    forward = run_graph(forward_graph(glow), image=images, noise=noise)
    np.testing.assert_allclose(forward["log_likelihood"], theirs.log_density.numpy(), rtol=1e-5)
    np.testing.assert_allclose(forward["latent"], _flat(theirs.eps), rtol=1e-4, atol=1e-4)
    reverse = run_graph(reverse_graph(glow), latent=forward["latent"])
    np.testing.assert_allclose(
        reverse["pixels"], images // 2 ** (8 - glow.n_bits) + noise.astype(np.float64), atol=0.02
    )


def test_the_constant_is_what_does_not_depend_on_the_image(
    model: PublicModel, glow: FoldedGlow, interpreter: Any
) -> None:
    images, noise = _given(glow)
    ours = interpreter.forward(glow, images, noise)
    varying = ours.log_prior.sum(1) + ours.log_det.sum(1)
    theirs = model.flowed(images, noise, glow.n_bits).log_density.numpy()
    np.testing.assert_allclose(theirs - varying, glow.log_det_constant, rtol=1e-9)
    if model.arguments.get("affine") is False or model.arguments.get("flow_coupling") == "additive":
        np.testing.assert_array_equal(ours.log_det[:, -1], 0)


# Samples of the implementations themselves


@pytest.mark.parametrize(("kind", "name"), SAMPLES, ids=lambda value: value)
def test_a_sample_of_an_implementation_is_computed_as_there(
    kind: str,
    name: str,
    shared_data: Path,
    interpreter: Any,
    run_graph: Callable[..., dict[str, np.ndarray]],
) -> None:
    folder = shared_data / "public-checkpoints"
    expected = np.load(folder / f"{name}.npz")
    glow = import_public(kind, folder / f"{name}.pt", folder / f"{name}.json").glow
    images, noise, nats = expected["image"], expected["noise"], expected["log_likelihood"]

    exact, ours = FoldedReference(glow), interpreter.forward(glow, images, noise)
    np.testing.assert_allclose(ours.log_likelihood, nats, rtol=1e-8)
    np.testing.assert_allclose(exact.log_likelihood(images, noise), nats, rtol=1e-8)
    bits = -ours.log_likelihood / (glow.dimensions * math.log(2))
    np.testing.assert_allclose(bits, expected["bits_per_dim"], rtol=1e-8)
    z = _z(glow, ours.latent)
    for level in range(len(z) - 1):
        if f"z_{level}" in expected:
            np.testing.assert_allclose(z[level], expected[f"z_{level}"], atol=1e-5)
    top = expected["z_top" if "z_top" in expected else f"z_{len(z) - 1}"]
    np.testing.assert_allclose(z[-1], top, atol=1e-5)

    forward = run_graph(forward_graph(glow), image=images, noise=noise)
    np.testing.assert_allclose(forward["log_likelihood"], nats, rtol=1e-5)
    np.testing.assert_allclose(_z(glow, forward["latent"])[-1], top, atol=1e-4)
    if "sample" in expected:
        eps = [torch.from_numpy(expected[f"eps_{level}"]) for level in range(len(z))]
        sample = (expected["sample"] + 0.5) * 256
        np.testing.assert_allclose(exact.pixels(_flat(eps)), sample, atol=1e-4)
        np.testing.assert_allclose(interpreter.reverse(glow, _flat(eps)), sample, atol=1e-4)
        pixels = run_graph(reverse_graph(glow), latent=_flat(eps).astype(np.float32))["pixels"]
        np.testing.assert_allclose(pixels, sample, atol=0.02)


@pytest.mark.parametrize(("kind", "name"), SAMPLES, ids=lambda value: value)
def test_the_rewritten_models_compute_what_the_implementations_do(
    kind: str, name: str, shared_data: Path, public_model: MakePublic
) -> None:
    folder = shared_data / "public-checkpoints"
    arguments = json.loads((folder / f"{name}.json").read_text())
    ignored = ("implementation", "actnorm_scale", "y_classes", "y_condition")
    model = public_model(kind, **{key: value for key, value in arguments.items() if key not in ignored})
    weights = torch.load(folder / f"{name}.pt", weights_only=True)
    assert list(weights) == list(model.state_dict())
    model.load_state_dict(weights)
    expected = np.load(folder / f"{name}.npz")
    flowed = model.flowed(expected["image"], expected["noise"], 8)
    np.testing.assert_allclose(flowed.log_density.numpy(), expected["log_likelihood"], rtol=1e-8)
    top = expected["z_top" if "z_top" in expected else f"z_{len(flowed.z) - 1}"]
    np.testing.assert_allclose(flowed.z[-1].numpy(), top, atol=1e-5)
    if "sample" in expected:
        eps = [torch.from_numpy(expected[f"eps_{level}"]).double() for level in range(len(flowed.z))]
        sample = model.inverse(eps).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(sample, expected["sample"], atol=1e-6)


# What a manifest says of it


def test_what_a_model_is_made_of_is_told(model: PublicModel, write_public: WritePublic) -> None:
    public = import_public(model.kind, *write_public(model))
    given = model.arguments
    if model.kind == "rosinality":
        assert (public.width, public.coupling_actnorm) == (512, False)
        assert public.steps_per_level == given["n_flow"]
        assert public.coupling == ("affine" if given["affine"] else "additive")
        assert public.parametrization == ("lu" if given["conv_lu"] else "plain")
    else:
        assert (public.width, public.coupling_actnorm) == (given["hidden_channels"], True)
        assert public.steps_per_level == given["K"]
        assert public.coupling == given["flow_coupling"]
        lu = "lu" if given["LU_decomposed"] else "plain"
        assert public.parametrization == ("reverse" if given["flow_permutation"] == "reverse" else lu)
    assert public.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {len(level.steps) for level in public.glow.levels} == {public.steps_per_level}
    for _, step in public.glow.named_steps():
        assert step.network[0].weight.shape[0] == public.width
        assert step.affine == (public.coupling == "affine")


# How checkpoints are written


@pytest.fixture(params=["rosinality", "y0ast"])
def small(request: pytest.FixtureRequest, public_model: MakePublic) -> PublicModel:
    """A small model of each implementation."""
    kind: str = request.param
    return public_model(kind)


def _rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    torch.save(change(torch.load(path, weights_only=True)), path)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda weights: {f"module.{key}": tensor for key, tensor in weights.items()},
        lambda weights: {"model": weights, "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]}},
        lambda weights: {"model": {f"module.{key}": tensor for key, tensor in weights.items()}},
        lambda weights: dict(reversed(weights.items())),
        lambda weights: {key: torch.nn.Parameter(x) if x.ndim else x for key, x in weights.items()},
    ],
    ids=["of DataParallel", "of ignite", "of both", "in another order", "of parameters"],
)
def test_a_state_dict_is_found_however_it_was_saved(
    wrap: Callable[[dict[str, Any]], Any], small: PublicModel, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(small)
    images, noise = _given(import_public(small.kind, checkpoint, arguments).glow)
    _rewrite(checkpoint, wrap)
    glow = import_public(small.kind, checkpoint, arguments).glow
    nats = FoldedReference(glow).log_likelihood(images, noise)
    np.testing.assert_allclose(nats, small.flowed(images, noise, 8).log_density.numpy(), rtol=1e-11)


def test_bits_may_be_left_out_where_the_implementation_has_no_flag_for_them(
    small: PublicModel, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(small)
    given = json.loads(arguments.read_text())
    del given["n_bits"]
    arguments.write_text(json.dumps(given))
    if small.kind == "y0ast":
        assert import_public(small.kind, checkpoint, arguments).glow.n_bits == 8
    else:
        assert "argument 'n_bits' is missing; add it" in _arguments_refusal(
            small.kind, (checkpoint, arguments)
        )


class _Anything:
    """What a checkpoint of a whole model would need to be executed."""


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (_Anything(), "cannot be read as a state_dict"),
        ([torch.zeros(1)], "holds no state_dict"),
        ({}, "holds no state_dict"),
        (torch.zeros(2), "holds no state_dict"),
        ({"net": {"weight": torch.zeros(1)}}, "under key 'net' lies a dict and not a tensor"),
        ({3: torch.zeros(1)}, "under key 3 lies a Tensor"),
    ],
    ids=["an object", "a list", "nothing", "a tensor", "nested", "numbered"],
)
def test_a_file_without_a_state_dict_is_refused_with_the_way_to_write_one(
    content: Any, said: str, small: PublicModel, write_public: WritePublic
) -> None:
    checkpoint, arguments = write_public(small)
    torch.save(content, checkpoint)
    with pytest.raises(ForeignCheckpointError, match=said) as error:
        import_public(small.kind, checkpoint, arguments)
    assert str(checkpoint) in str(error.value)
    assert "torch.save(model.state_dict(), PATH)" in str(error.value)


def test_a_damaged_or_missing_checkpoint_is_refused(small: PublicModel, write_public: WritePublic) -> None:
    checkpoint, arguments = write_public(small)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(
        ForeignCheckpointError, match=r"public\.pt cannot be read as a state_dict: it is damaged"
    ):
        import_public(small.kind, checkpoint, arguments)
    checkpoint.unlink()
    with pytest.raises(ForeignCheckpointError, match=r"public\.pt: there is no such file"):
        import_public(small.kind, checkpoint, arguments)


# Keys and shapes


def _refusal(small: PublicModel, paths: tuple[Path, Path]) -> str:
    with pytest.raises(ForeignCheckpointError) as error:
        import_public(small.kind, *paths)
    message = str(error.value)
    assert str(paths[0]) in message
    assert message.endswith("Check --config, and --from")
    return message


def test_every_key_must_be_there(small: PublicModel, write_public: WritePublic) -> None:
    for key in small.state_dict():
        paths = write_public(small)
        _rewrite(paths[0], lambda weights, key=key: {k: x for k, x in weights.items() if k != key})
        shape = list(small.state_dict()[key].shape)
        said = f"key {key} is missing; the arguments imply it, of shape {shape}"
        assert said in _refusal(small, paths)


def test_every_shape_must_be_that_of_the_arguments(small: PublicModel, write_public: WritePublic) -> None:
    for key, tensor in small.state_dict().items():
        paths = write_public(small)
        _rewrite(paths[0], lambda weights, key=key: weights | {key: weights[key][None]})
        shape = list(tensor.shape)
        assert f"key {key} has shape {[1, *shape]}, and the arguments imply {shape}" in _refusal(small, paths)


def test_a_key_that_is_left_over_is_refused(small: PublicModel, write_public: WritePublic) -> None:
    paths = write_public(small)
    _rewrite(paths[0], lambda weights: weights | {"classifier.weight": torch.zeros(2, 3)})
    said = "key classifier.weight of shape [2, 3] is left over; the arguments imply no such key"
    assert said in _refusal(small, paths)


def test_the_first_of_several_differences_in_the_order_of_the_model_is_named(
    small: PublicModel, write_public: WritePublic
) -> None:
    def change(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        keys = list(weights)
        del weights[keys[20]]
        weights[keys[30]] = torch.zeros(7)
        inserted = {keys[9]: weights[keys[9]], "extra": torch.zeros(1)}
        return {
            k: x for key in weights for k, x in (inserted if key == keys[9] else {key: weights[key]}).items()
        }

    keys = list(small.state_dict())
    paths = write_public(small)
    _rewrite(paths[0], change)
    assert "key extra of shape [1] is left over" in _refusal(small, paths)
    _rewrite(paths[0], lambda weights: {k: x for k, x in weights.items() if k != "extra"})
    assert f"key {keys[20]} is missing" in _refusal(small, paths)
    _rewrite(paths[0], lambda weights: weights | {keys[3]: torch.zeros(7)})
    assert f"key {keys[3]} has shape [7]" in _refusal(small, paths)


def test_a_checkpoint_of_the_other_implementation_is_refused_by_its_first_key(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    theirs = public_model("y0ast")
    checkpoint, _ = write_public(theirs)
    keep = checkpoint.rename(checkpoint.with_name("y0ast.pt"))
    small = public_model("rosinality")
    _, arguments = write_public(small)
    assert "key prior_h of shape [1, 48, 2, 2] is left over" in _refusal(small, (keep, arguments))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_weight_that_is_not_finite_is_refused_by_name(
    value: float, small: PublicModel, write_public: WritePublic
) -> None:
    paths = write_public(small)
    key = next(key for key in small.state_dict() if key.endswith("conv.bias"))
    _rewrite(paths[0], lambda weights: weights | {key: torch.full_like(weights[key], value)})
    with pytest.raises(NotInvertibleError, match=f"weight {key} is not finite"):
        import_public(small.kind, *paths)


# Arguments


def _arguments_refusal(kind: str, paths: tuple[Path, Path]) -> str:
    with pytest.raises(ArgumentsError) as error:
        import_public(kind, *paths)
    message = str(error.value)
    assert str(paths[1]) in message
    return message


def test_every_argument_must_be_given(small: PublicModel, write_public: WritePublic) -> None:
    for name in set(small.arguments) - {"n_bits"}:
        paths = write_public(small)
        given = {key: value for key, value in small.arguments.items() if key != name}
        paths[1].write_text(json.dumps(given))
        assert f"argument '{name}' is missing; add it" in _arguments_refusal(small.kind, paths)


def test_every_argument_must_be_of_its_type(small: PublicModel, write_public: WritePublic) -> None:
    for name, value in small.arguments.items():
        wrong: list[Any] = [None, {}, [1, 2], [1, 2, "3"]]
        if not isinstance(value, str):
            wrong.append("2")
        if isinstance(value, bool):
            wrong.append(1)
        elif not isinstance(value, float):
            wrong += [True, 0, -1, 1.5]
        for other in wrong:
            said = f"{name} is {json.dumps(other)}; it must be "
            assert said in _arguments_refusal(small.kind, write_public(small, **{name: other}))


def test_an_argument_that_is_not_known_is_refused(small: PublicModel, write_public: WritePublic) -> None:
    message = _arguments_refusal(small.kind, write_public(small, n_flows=3))
    assert "'n_flows' is no argument of" in message
    assert all(name in message for name in small.arguments)


def test_bits_beyond_8_are_refused(small: PublicModel, write_public: WritePublic) -> None:
    message = _arguments_refusal(small.kind, write_public(small, n_bits=9))
    assert "n_bits is 9; it must lie in 1 to 8" in message


def test_arguments_of_the_other_implementation_are_refused(
    small: PublicModel, write_public: WritePublic
) -> None:
    names = {"rosinality": "rosinality/glow-pytorch", "y0ast": "y0ast/Glow-PyTorch"}
    assert import_public(small.kind, *write_public(small, implementation=names[small.kind]))
    (other,) = set(names.values()) - {names[small.kind]}
    message = _arguments_refusal(small.kind, write_public(small, implementation=other))
    assert other in message
    assert "check --from and --config" in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be read as JSON"),
        (b"\xff\xfe\xfd", "cannot be read as JSON"),
        ("[]", "hold no JSON object"),
    ],
    ids=["cut off", "not text", "a list"],
)
def test_arguments_that_are_no_json_object_are_refused(
    text: str | bytes, said: str, small: PublicModel, write_public: WritePublic
) -> None:
    paths = write_public(small)
    paths[1].write_bytes(text if isinstance(text, bytes) else text.encode())
    assert said in _arguments_refusal(small.kind, paths)


def test_arguments_that_are_not_there_are_refused(small: PublicModel, write_public: WritePublic) -> None:
    paths = write_public(small)
    paths[1].unlink()
    assert "there is no such file; give a JSON file with --config" in _arguments_refusal(small.kind, paths)


def test_an_implementation_that_is_not_known_is_refused(
    public_model: MakePublic, write_public: WritePublic
) -> None:
    with pytest.raises(
        ArgumentsError, match="implementation is 'openai'; it must be one of rosinality, y0ast"
    ):
        import_public("openai", *write_public(public_model("y0ast")))

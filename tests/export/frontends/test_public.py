"""The public frontends: each folded model and its graphs compute what the public implementation does."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from glowserve_export.couplings import Shift
from glowserve_export.errors import ArgumentsError
from glowserve_export.folded import FoldedGlow
from glowserve_export.folded_reference import FoldedReference
from glowserve_export.frontends.folding import PublicGlow
from glowserve_export.frontends.public import import_public
from glowserve_export.frontends.state_dict import read_state_dict
from glowserve_export.graphs import forward_graph, reverse_graph

from tests.export import interpreter
from tests.export.frontends.public_model import PublicModel
from tests.export.frontends.public_models import (
    IMPORTS,
    public_model,
    weights_of,
    write_arguments,
    write_public,
)
from tests.export.models import run_graph

ROSINALITY = [
    {},
    {"affine": False, "n_block": 1, "in_channel": 1},
    {"conv_lu": False, "n_bits": 5},
    {"conv_lu": False, "last_block_obeys": True, "affine": False, "n_block": 3, "n_flow": 1, "n_bits": 3},
    {"conv_lu": True, "last_block_obeys": True, "in_channel": 1, "n_bits": 1, "image_size": 12},
]
Y0AST = [
    {},
    {"LU_decomposed": False, "n_bits": 5, "K": 3},
    {"flow_coupling": "additive", "learn_top": False, "L": 1, "image_shape": (8, 8, 1)},
    {"flow_permutation": "reverse", "L": 3, "K": 1, "n_bits": 2},
    {"flow_permutation": "reverse", "flow_coupling": "additive", "LU_decomposed": False},
    {"learn_top": False, "image_shape": (12, 8, 1)},
]
CHAIYUJIN = [
    {},
    {"LU_decomposed": False, "flow_coupling": "additive", "learn_top": False, "L": 3},
    {"flow_permutation": "reverse", "L": 1, "image_shape": (6, 10, 1), "K": 3},
    {"image_shape": (16, 16, 1), "L": 4, "K": 1, "hidden_channels": 5},
]
NORMFLOWS = [
    {},
    {"scale_map": "exp", "use_lu": False, "bases": ("GlowBase",), "n_bits": 5, "K": 3},
    {"scale_map": "sigmoid_inv", "net_actnorm": True, "L": 3, "bases": ("AffineGaussian", "GlowBase")},
    {"scale": False, "L": 1, "input_shape": (1, 6, 10), "bases": ("GlowBase",), "logscale_factor": 1.0},
    {"scale": False, "split_mode": "channel_inv", "transform": "Shift", "n_bits": 2},
    {"split_mode": "channel_inv", "scale_map": "exp", "L": 4, "K": 1, "input_shape": (1, 16, 16)},
]
CASES = [
    (kind, case)
    for kind, cases in {
        "rosinality": ROSINALITY,
        "y0ast": Y0AST,
        "chaiyujin": CHAIYUJIN,
        "normflows": NORMFLOWS,
    }.items()
    for case in cases
]
# Checkpoints of the implementations themselves, with their outputs.
SAMPLES = [
    ("rosinality", "rosinality-lu-affine-8bit"),
    ("y0ast", "y0ast-lu-affine"),
    ("chaiyujin", "chaiyujin-lu-affine-learn-top"),
    ("chaiyujin", "chaiyujin-plain-affine"),
    ("normflows", "normflows-glowbase-lu-sigmoid"),
]


@pytest.fixture(
    scope="module",
    params=CASES,
    ids=lambda case: "-".join([case[0], *(f"{name}={value}" for name, value in case[1].items())]),
)
def model(request: pytest.FixtureRequest) -> PublicModel:
    kind, arguments = request.param
    return public_model(kind, **arguments)


@pytest.fixture(scope="module")
def public(model: PublicModel, tmp_path_factory: pytest.TempPathFactory) -> PublicGlow:
    return import_public(model.kind, *write_public(tmp_path_factory.mktemp("public"), model))


@pytest.fixture(scope="module")
def glow(public: PublicGlow) -> FoldedGlow:
    return public.glow


def _inputs(glow: FoldedGlow) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    shape = (3, *glow.image_shape)
    return rng.integers(0, 256, shape, dtype=np.uint8), rng.random(shape, dtype=np.float32)


def _flat(parts: list[torch.Tensor]) -> np.ndarray:
    return torch.cat([part.flatten(1) for part in parts], dim=1).numpy()


def _z(glow: FoldedGlow, latent: np.ndarray) -> list[np.ndarray]:
    """Latents before they are standardized, by level."""
    z = {}
    for name, x in FoldedReference(glow).reverse_layers(latent):
        if name == "top.z":
            z[len(glow.levels)] = x.numpy()
        elif name.endswith(".prior.joined"):
            z[int(name.removeprefix("level").partition(".")[0])] = x.tensor_split(2, dim=1)[1].numpy()
    return [z[level] for level in sorted(z)]


def test_the_folded_model_has_the_likelihoods_and_latents_of_the_model(
    model: PublicModel, glow: FoldedGlow
) -> None:
    images, noise = _inputs(glow)
    expected = model.flowed(images, noise, glow.n_bits)
    terms = interpreter.forward(glow, images, noise)
    np.testing.assert_allclose(terms.log_likelihood, expected.log_density.numpy(), rtol=1e-11)
    np.testing.assert_allclose(terms.latent, _flat(expected.eps), rtol=1e-9, atol=1e-9)
    reference = FoldedReference(glow).log_likelihood(images, noise)
    np.testing.assert_allclose(reference, expected.log_density.numpy(), rtol=1e-11)
    for level, z in enumerate(_z(glow, terms.latent)):
        np.testing.assert_allclose(z, expected.z[level].numpy(), rtol=1e-9, atol=1e-9)


def test_the_folded_model_decodes_as_the_model_does(model: PublicModel, glow: FoldedGlow) -> None:
    rng = np.random.default_rng(0)
    eps = [torch.from_numpy(rng.standard_normal((3, *shape))) for shape in glow.latent_shapes()]
    expected = model.in_bins(model.inverse(eps).permute(0, 2, 3, 1), glow.n_bits)
    np.testing.assert_allclose(interpreter.reverse(glow, _flat(eps)), expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(FoldedReference(glow).pixels(_flat(eps)), expected, rtol=1e-9, atol=1e-9)


def test_graphs_compute_what_the_model_does(model: PublicModel, glow: FoldedGlow) -> None:
    images, noise = _inputs(glow)
    expected = model.flowed(images, noise, glow.n_bits)
    forward = run_graph(forward_graph(glow), image=images, noise=noise)
    np.testing.assert_allclose(forward["log_likelihood"], expected.log_density.numpy(), rtol=1e-5)
    np.testing.assert_allclose(forward["latent"], _flat(expected.eps), rtol=1e-4, atol=1e-4)
    reverse = run_graph(reverse_graph(glow), latent=forward["latent"])
    bins = images // 2 ** (8 - glow.n_bits)
    np.testing.assert_allclose(reverse["pixels"], bins + noise.astype(np.float64), atol=0.02)


def test_the_constant_is_the_part_that_does_not_depend_on_the_image(
    model: PublicModel, glow: FoldedGlow
) -> None:
    images, noise = _inputs(glow)
    terms = interpreter.forward(glow, images, noise)
    varying = terms.log_prior.sum(1) + terms.log_det.sum(1)
    expected = model.flowed(images, noise, glow.n_bits).log_density.numpy()
    np.testing.assert_allclose(expected - varying, glow.log_det_constant, rtol=1e-9)
    if isinstance(glow.levels[-1].steps[0].coupling.transform, Shift):
        np.testing.assert_array_equal(terms.log_det[:, -1], 0)


def test_the_architecture_is_read_from_the_arguments(model: PublicModel, public: PublicGlow) -> None:
    given = {"filter_size": 512, "net_actnorm": model.kind != "rosinality"} | model.arguments
    affine = next(given[name] for name in ("affine", "flow_coupling", "scale") if name in given)
    lu = next(given[name] for name in ("conv_lu", "LU_decomposed", "use_lu") if name in given)
    assert public.width == next(given[name] for name in ("hidden_channels", "filter_size") if name in given)
    assert public.coupling_actnorm == given["net_actnorm"]
    assert public.steps_per_level == next(given[name] for name in ("n_flow", "K") if name in given)
    assert public.coupling == ("affine" if affine in (True, "affine") else "additive")
    reverse = given.get("flow_permutation") == "reverse"
    assert public.parametrization == ("reverse" if reverse else "lu" if lu else "plain")
    assert public.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert {len(level.steps) for level in public.glow.levels} == {public.steps_per_level}
    for _, step in public.glow.named_steps():
        assert step.coupling.network.first.outputs == public.width
        assert isinstance(step.coupling.transform, Shift) == (public.coupling == "additive")


def test_an_unknown_implementation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        ArgumentsError,
        match="implementation is 'openai'; it must be one of rosinality, y0ast, chaiyujin, normflows",
    ):
        import_public("openai", tmp_path / "public.pt", tmp_path / "public.json")


def _nats(expected: Mapping[str, np.ndarray]) -> np.ndarray:
    """The log-likelihoods; those of x = (u + noise) / 255 where there are several."""
    return expected["log_likelihood_x255" if "log_likelihood_x255" in expected else "log_likelihood"]


def _noise_of_latents(kind: str, noise: np.ndarray) -> np.ndarray:
    """The noise with which (u + noise) / 255 is the x of the latents: chaiyujin's are those of u/255 + noise/256."""
    return noise * np.float64(255 / 256) if kind == "chaiyujin" else noise


def _sample_model(kind: str, name: str, folder: Path) -> PublicModel:
    """The rewritten model with the weights of a checkpoint."""
    arguments = json.loads((folder / f"{name}.json").read_text())
    arguments = arguments.get("Glow", arguments)
    if kind == "normflows":
        arguments["bases"] = (arguments["base"],)
    accepted = inspect.signature(type(public_model(kind))).parameters
    model = public_model(kind, **{key: value for key, value in arguments.items() if key in accepted})
    weights = read_state_dict(folder / f"{name}.pt")
    assert sorted(weights) == sorted(model.state_dict())
    if "prior_h" in weights:
        weights["prior_h"] = weights["prior_h"][:1]
    model.load_state_dict(weights)
    return model


@pytest.mark.parametrize(("kind", "name"), SAMPLES, ids=lambda value: value)
def test_a_checkpoint_of_an_implementation_computes_what_it_computed_there(
    kind: str, name: str, shared_data: Path
) -> None:
    folder = shared_data / "public-checkpoints"
    expected = np.load(folder / f"{name}.npz")
    glow = import_public(kind, folder / f"{name}.pt", folder / f"{name}.json").glow
    images, noise, nats = expected["image"], expected["noise"], _nats(expected)
    rtol = 1e-10 if kind in ("chaiyujin", "normflows") else 1e-8

    reference, terms = FoldedReference(glow), interpreter.forward(glow, images, noise)
    np.testing.assert_allclose(terms.log_likelihood, nats, rtol=rtol)
    np.testing.assert_allclose(reference.log_likelihood(images, noise), nats, rtol=rtol)
    seen = _noise_of_latents(kind, noise)
    z = _z(glow, interpreter.forward(glow, images, seen).latent)
    for level in range(len(z) - 1):
        if f"z_{level}" in expected:
            np.testing.assert_allclose(z[level], expected[f"z_{level}"], atol=1e-5)
    top = expected["z_top" if "z_top" in expected else f"z_{len(z) - 1}"]
    np.testing.assert_allclose(z[-1], top, atol=1e-5)

    graph = forward_graph(glow)
    np.testing.assert_allclose(run_graph(graph, image=images, noise=noise)["log_likelihood"], nats, rtol=1e-5)
    latent = run_graph(graph, image=images, noise=seen.astype(np.float32))["latent"]
    np.testing.assert_allclose(_z(glow, latent)[-1], top, atol=1e-4)
    if "sample" in expected:
        eps = [torch.from_numpy(expected[f"eps_{level}"]) for level in range(len(z))]
        sample = _sample_model(kind, name, folder).in_bins(torch.from_numpy(expected["sample"]), 8)
        np.testing.assert_allclose(reference.pixels(_flat(eps)), sample, atol=1e-4)
        np.testing.assert_allclose(interpreter.reverse(glow, _flat(eps)), sample, atol=1e-4)
        pixels = run_graph(reverse_graph(glow), latent=_flat(eps).astype(np.float32))["pixels"]
        np.testing.assert_allclose(pixels, sample, atol=0.02)


@pytest.mark.parametrize(("kind", "name"), SAMPLES, ids=lambda value: value)
def test_the_rewritten_models_compute_what_the_implementations_do(
    kind: str, name: str, shared_data: Path
) -> None:
    folder = shared_data / "public-checkpoints"
    model = _sample_model(kind, name, folder)
    expected = np.load(folder / f"{name}.npz")
    flowed = model.flowed(expected["image"], expected["noise"], 8)
    np.testing.assert_allclose(flowed.log_density.numpy(), _nats(expected), rtol=1e-8)
    flowed = model.flowed(expected["image"], _noise_of_latents(kind, expected["noise"]), 8)
    top = expected["z_top" if "z_top" in expected else f"z_{len(flowed.z) - 1}"]
    np.testing.assert_allclose(flowed.z[-1].numpy(), top, atol=1e-5)
    if "sample" in expected:
        eps = [torch.from_numpy(expected[f"eps_{level}"]).double() for level in range(len(flowed.z))]
        sample = model.inverse(eps).permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(sample, expected["sample"], atol=1e-6)


def test_a_class_conditional_checkpoint_has_the_likelihood_and_the_samples_of_every_class(
    shared_data: Path,
) -> None:
    name = shared_data / "public-checkpoints" / "normflows-classcond-lu-sigmoid"
    expected = np.load(f"{name}.npz")
    model = import_public("normflows", Path(f"{name}.pt"), Path(f"{name}.json"))
    assert model.classes == tuple("0123456789")
    glow, images, noise = model.glow, expected["image"], expected["noise"]
    assert glow.classes is not None
    reference = FoldedReference(glow)
    joint = reference.log_likelihood(images, noise)[:, None] + reference.log_posterior(images, noise)
    np.testing.assert_allclose(joint - glow.classes.log_share, expected["log_likelihood"], rtol=1e-10)
    found = run_graph(forward_graph(glow), image=images, noise=noise)
    joint = found["log_likelihood"][:, None] + found["log_posterior"]
    np.testing.assert_allclose(joint - glow.classes.log_share, expected["log_likelihood"], rtol=1e-5)
    eps = _flat([torch.from_numpy(expected[f"eps_{level}"]) for level in range(2)]).astype(np.float32)
    pixels = run_graph(reverse_graph(glow), latent=eps, **{"class": expected["sample_label"]})["pixels"]
    np.testing.assert_allclose(pixels / 256, expected["sample"], atol=1e-5)


def test_a_class_of_y0ast_adds_to_the_prior_of_the_top_level(tmp_path: Path) -> None:
    model = public_model("y0ast")
    torch.manual_seed(0)
    added = {
        "project_ycond.linear.weight": torch.randn(48, 3) * 0.3,
        "project_ycond.linear.bias": torch.randn(48) * 0.1,
        "project_ycond.logs": torch.randn(48) * 0.1,
        "project_class.linear.weight": torch.zeros(3, 24),
        "project_class.linear.bias": torch.zeros(3),
        "project_class.logs": torch.zeros(3),
    }
    arguments = write_arguments(tmp_path, model, y_condition=True, y_classes=3)
    glow = IMPORTS["y0ast"](weights_of(model) | added, tmp_path / "public.pt", arguments).glow
    assert glow.classes is not None
    linear = added["project_ycond.linear.weight"].T + added["project_ycond.linear.bias"]
    mean, log_scale = (linear * (3 * added["project_ycond.logs"]).exp()).double().chunk(2, dim=1)
    z = torch.randn(2, 24, 2, 2, dtype=torch.float64)
    top_mean, top_log_scale = torch.from_numpy(glow.top_mean), torch.from_numpy(glow.top_log_scale)
    expected = torch.distributions.Normal(
        top_mean + mean[:, :, None, None], (top_log_scale + log_scale[:, :, None, None]).exp()
    )
    nats = expected.log_prob(z[:, None]).sum((2, 3, 4))
    latent = ((z - top_mean) / top_log_scale.exp()).flatten(1)
    lower = torch.zeros(2, glow.classes.sizes[0], dtype=torch.float64)
    found = glow.classes.mixture([lower, latent])
    np.testing.assert_allclose(found.log_posterior, nats.log_softmax(1), atol=1e-9)

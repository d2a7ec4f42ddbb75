"""Variational dequantization on its way to a served bundle."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import glowserve_export.bundle
import glowserve_export.source
import numpy as np
import onnx
import pytest
import torch
from glowserve_export.bundle import export as export_source
from glowserve_export.errors import NotInvertibleError, VerificationError
from glowserve_export.evaluation import EvaluatedBundle
from glowserve_export.folded import FoldedDequantization, FoldedGlow
from glowserve_export.frontends.glowserve import fold_glow
from glowserve_export.graphs import forward_graph, reverse_graph
from glowserve_export.precision import Precision
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_training.checkpoint import load_checkpoint, save_checkpoint
from glowserve_training.evaluation import (
    Decoded,
    EvaluatedGlow,
    evaluate,
    measure_round_trip,
)
from glowserve_training.hardware import Hardware
from glowserve_training.model import Glow, GlowConfig
from glowserve_training.presets import run_config
from glowserve_training.run import train
from onnx import numpy_helper

import glowserve
from glowserve.images import UInt8Array
from glowserve.runtime.repository import Bundle, newest_bundle


def export_checkpoint(checkpoint: Path, model_dir: Path, **options: Any) -> Bundle:
    """Exports what `glowserve train` left."""
    return export_source(load_glowserve_checkpoint(checkpoint), model_dir, **options)


RandomGlow = Callable[..., Glow]
RunGraph = Callable[..., dict[str, np.ndarray]]

# The largest noise there is.
LAST = 1 - 2**-24
SHAPES = [
    {"image_size": 8, "channels": 1, "levels": 2, "n_bits": 4},
    {"image_size": 32, "channels": 3, "levels": 3, "n_bits": 8},
    {"image_size": 6, "channels": 3, "levels": 1, "n_bits": 5, "coupling": "additive"},
]


def _variational(random_glow: RandomGlow, **config: Any) -> Glow:
    return random_glow(dequantization="variational", **config)


def _inputs(rng: np.random.Generator, model: Glow, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, and noise with both ends of its range in it."""
    config = model.config
    shape = (n, config.image_size, config.image_size, config.channels)
    noise = (rng.integers(0, 2**24, shape) * 2.0**-24).astype(np.float32)
    noise[0, 0, :2, 0] = 0, LAST
    return rng.integers(0, 256, shape, np.uint8), noise


def _exact(model: Glow, images: np.ndarray, noise: np.ndarray) -> tuple[Any, np.ndarray]:
    """PyTorch's terms in float64, and what it makes of the noise, [N, H, W, C]."""
    double, uniform = copy.deepcopy(model).double(), torch.from_numpy(noise).double()
    with torch.no_grad():
        terms = double.terms(torch.from_numpy(images), uniform)
        y, _ = double.dequantize(torch.from_numpy(images), uniform)
    n_bits = model.config.n_bits
    pixels = (y.permute(0, 2, 3, 1).numpy() + 0.5) * 2**n_bits
    return terms, pixels - (images >> (8 - n_bits))


def _with_output(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return model


# The graph


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_likelihoods_and_terms_are_those_of_pytorch_in_float64(
    shape: dict[str, Any], random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    model = _variational(random_glow, **shape)
    images, noise = _inputs(rng, model, 5)
    terms, v = _exact(model, images, noise)
    assert np.abs(v - noise).max() > 0.05, "the noise must change, or this test says nothing"
    ours = run_graph(
        _with_output(forward_graph(fold_glow(model)), "dequantization"), image=images, noise=noise
    )
    np.testing.assert_allclose(ours["log_likelihood"], terms.total().numpy(), rtol=1e-6)
    np.testing.assert_allclose(ours["log_prior"], terms.log_prior.numpy(), rtol=1e-5)
    np.testing.assert_allclose(ours["log_det"], terms.log_det.numpy(), rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(ours["dequantization"], v, atol=2e-6)


@pytest.mark.parametrize("value", [0.0, 2**-24, LAST])
def test_noise_at_the_ends_of_its_range_keeps_its_digits(
    value: float, random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    model = _variational(random_glow, n_bits=4)
    images, noise = _inputs(rng, model, 3)
    noise[:] = value
    terms, _ = _exact(model, images, noise)
    ours = run_graph(forward_graph(fold_glow(model)), image=images, noise=noise)
    # 1 - u in float32 would be off by 5 % here, and so would each of the 64 logarithms by 0.05.
    np.testing.assert_allclose(ours["log_det"], terms.log_det.numpy(), rtol=1e-6, atol=2e-3)


def test_what_has_learned_nothing_yet_leaves_noise_and_likelihood_as_they_are(
    random_glow: RandomGlow, run_graph: RunGraph, rng: np.random.Generator
) -> None:
    uniform = random_glow(levels=2, n_bits=4)
    model = Glow(GlowConfig(**vars(uniform.config) | {"dequantization": "variational"})).eval()
    model.load_state_dict(model.state_dict() | uniform.state_dict())
    images, noise = _inputs(rng, model, 4)
    noise = noise.clip(0.01, 0.99)
    ours = run_graph(
        _with_output(forward_graph(fold_glow(model)), "dequantization"), image=images, noise=noise
    )
    theirs = run_graph(forward_graph(fold_glow(uniform)), image=images, noise=noise)
    np.testing.assert_allclose(ours["dequantization"], noise, atol=2e-6)
    np.testing.assert_allclose(ours["log_det"], theirs["log_det"], atol=2e-4)
    np.testing.assert_allclose(ours["log_likelihood"], theirs["log_likelihood"], rtol=1e-5)


def test_a_coupling_of_the_noise_is_thirteen_nodes_and_the_rest_thirty(random_glow: RandomGlow) -> None:
    glow = fold_glow(_variational(random_glow, levels=2))
    learned = glow.dequantization
    assert learned is not None
    nodes = []
    for n in (1, 2, 4):
        some = replace(glow, dequantization=replace(learned, networks=learned.networks[:n]))
        nodes.append(len(forward_graph(some).graph.node))
    without = len(forward_graph(replace(glow, dequantization=None)).graph.node)
    assert [count - without for count in nodes] == [30 + 13, 30 + 2 * 13, 30 + 4 * 13]


def test_the_way_back_does_not_know_of_it(random_glow: RandomGlow) -> None:
    glow = fold_glow(_variational(random_glow, levels=2))
    assert reverse_graph(glow) == reverse_graph(replace(glow, dequantization=None))


def test_uniform_noise_is_added_as_it_comes(random_glow: RandomGlow) -> None:
    graph = forward_graph(fold_glow(random_glow(levels=2))).graph
    (node,) = [node for node in graph.node if "noise" in node.input]
    assert (node.op_type, list(node.input)) == ("Add", ["image.float", "noise"])
    names = {name for node in graph.node for name in (*node.input, *node.output)}
    assert not any("dequantization" in name for name in names)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_weight_of_it_that_is_not_finite_is_refused_by_name(value: float, random_glow: RandomGlow) -> None:
    model = _variational(random_glow)
    name = "dequantization.networks.2.4.conv.bias"
    model.state_dict()[name].view(-1)[0] = value
    with pytest.raises(NotInvertibleError, match=f"weight {name} is not finite"):
        fold_glow(model)


# From training to serving


@pytest.fixture(scope="module")
def variational_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained on the digits for some seconds, its dequantization then moved as by a longer training."""
    config = run_config(
        "digits",
        steps_per_level=2,
        width=16,
        steps=30,
        batch_size=32,
        learning_rate=3e-3,
        warmup_steps=10,
        average_decay=0.5,
        parametrization="orthogonal",
        coupling_actnorm=True,
        dequantization="variational",
    )
    path = train(config, tmp_path_factory.mktemp("variational"), hardware=Hardware(device="cpu"))
    trained = load_checkpoint(path)
    generator = torch.Generator().manual_seed(0)
    for name, weight in trained.model.state_dict().items():
        if re.fullmatch(r"dequantization\.networks\.\d\.4\.conv\.(weight|bias)", name):
            weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    changed = tmp_path_factory.mktemp("changed") / "model.ckpt"
    save_checkpoint(trained, changed)
    return changed


@pytest.fixture(scope="module")
def variational_repository(variational_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with that model as `variational`."""
    path = tmp_path_factory.mktemp("models")
    export_checkpoint(variational_checkpoint, path / "variational")
    return path


@pytest.fixture(scope="module")
def variational_bundle(variational_repository: Path) -> Bundle:
    """That model's bundle."""
    return newest_bundle(variational_repository / "variational")


def test_a_trained_model_is_proved_and_its_manifest_says_what_it_is(variational_bundle: Bundle) -> None:
    manifest = variational_bundle.manifest
    assert manifest.flow.parametrization == "orthogonal"
    assert manifest.flow.dequantization == "variational"
    assert manifest.flow.coupling_actnorm
    checks = {check.name: check for check in manifest.verification.checks}
    assert 0 < checks["log-likelihood, relative error"].value < 2e-6
    assert checks["round trip, values changed"].value == 0
    # Against the middle of the bin, this would be a tenth and more.
    assert 0 < checks["round trip, farthest from what was encoded"].value < 0.01


def test_a_trained_models_noise_has_left_the_middle_of_the_bin(
    variational_checkpoint: Path, digits: UInt8Array
) -> None:
    _, v = _exact(
        load_checkpoint(variational_checkpoint).model, digits, np.full(digits.shape, 0.5, np.float32)
    )
    assert np.abs(v - 0.5).max() > 0.1
    assert 0 < v.min() < v.max() < 1


def test_a_bundle_and_its_checkpoint_are_measured_alike(
    variational_bundle: Bundle, variational_checkpoint: Path, digits: UInt8Array
) -> None:
    model = load_checkpoint(variational_checkpoint).model
    ours = evaluate(EvaluatedBundle(variational_bundle, device="cpu"), digits, importance_samples=2)
    theirs = evaluate(EvaluatedGlow(model), digits, importance_samples=2)
    assert ours.bits_per_dim == pytest.approx(theirs.bits_per_dim, abs=1e-4)
    assert ours.constant_bits_per_dim == pytest.approx(theirs.constant_bits_per_dim, abs=1e-4)
    for our, their in zip(ours.levels, theirs.levels, strict=True):
        assert our.log_prior_bits_per_dim == pytest.approx(their.log_prior_bits_per_dim, abs=1e-4)
        assert our.log_det_bits_per_dim == pytest.approx(their.log_det_bits_per_dim, abs=1e-4)
    for found in (ours.round_trip, theirs.round_trip):
        assert found.images_exact == len(digits)
        assert 0 < found.largest_error < 0.01


def test_both_see_the_same_of_an_image(
    variational_bundle: Bundle, variational_checkpoint: Path, digits: UInt8Array, rng: np.random.Generator
) -> None:
    noise = rng.random(digits.shape, np.float32)
    model = EvaluatedGlow(load_checkpoint(variational_checkpoint).model)
    bundle = EvaluatedBundle(variational_bundle, device="cpu")
    seen = bundle.dequantize(digits, noise)
    v = seen - (digits >> 4)
    assert 0 <= v.min() < v.max() <= 1
    assert np.abs(v - noise).max() > 0.05
    np.testing.assert_allclose(model.dequantize(digits, noise), seen, atol=1e-4)
    np.testing.assert_allclose(
        model.encode(digits, noise), bundle.encode(digits, noise), rtol=1e-3, atol=1e-3
    )


def test_a_wrong_decoder_is_measured_from_where_the_noise_is(
    variational_checkpoint: Path, digits: UInt8Array
) -> None:
    model = EvaluatedGlow(load_checkpoint(variational_checkpoint).model)
    decode = model.decode

    def farther(latent: np.ndarray) -> Decoded:
        decoded = decode(latent)
        return replace(decoded, pixels=decoded.pixels + np.float32(0.25))

    model.decode = farther  # type: ignore[method-assign]
    assert measure_round_trip(model, digits).largest_error == pytest.approx(0.25, abs=0.01)


def test_it_is_served_with_the_likelihoods_of_pytorch_and_images_that_come_back(
    variational_repository: Path, variational_checkpoint: Path, run_server: Any, digits: UInt8Array
) -> None:
    from glowserve.runtime.randomness import dequantization_noise

    terms, _ = _exact(load_checkpoint(variational_checkpoint).model, digits, dequantization_noise(0, digits))
    with (
        run_server(repository=variational_repository) as server,
        glowserve.Client(f"127.0.0.1:{server.port}") as client,
    ):
        for model in (client, glowserve.open(variational_repository / "variational")):
            scores = model.score(digits)
            np.testing.assert_allclose(scores.log_likelihood, terms.total().numpy(), rtol=1e-5)
            encodings = model.encode(digits)
            assert encodings.mismatched_values.sum() == 0
            decoded = model.decode(encodings.latents)
            np.testing.assert_array_equal(np.asarray(decoded) >> 4, digits >> 4)
            assert len(model.sample(2, temperature=0.7)) == 2


# The proof


@pytest.fixture
def message(variational_checkpoint: Path, tmp_path: Path) -> Callable[[], str]:
    """Exports, and returns what the VerificationError says; nothing may be left."""

    def fail() -> str:
        with pytest.raises(VerificationError) as raised:
            export_checkpoint(variational_checkpoint, tmp_path / "digits")
        assert list(tmp_path.iterdir()) == []
        return str(raised.value)

    return fail


@pytest.mark.parametrize(
    ("constant", "amount", "layer"),
    [
        ("dequantization.coupling1.conv1.weight", 0.5, "dequantization"),
        ("dequantization.coupling2.conv2.bias", np.nan, "dequantization"),
        ("dequantization.coupling3.conv3.weight", 0.5, "dequantization"),
        ("dequantization.coupling4.conv3.bias", 0.1, "dequantization"),
        ("bin.first_middle", 0.25, "dequantization"),
        ("dequantization.ln2", 0.01, "the log-determinants"),
        ("dequantization.constant", 0.1, "the log-determinants"),
        ("level1.step1.mix.bias", 0.5, "level1.step1"),
    ],
)
def test_a_wrong_number_is_found_in_its_layer(
    constant: str,
    amount: float,
    layer: str,
    message: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def write(glow: FoldedGlow, precision: Precision) -> onnx.ModelProto:
        model = forward_graph(glow, precision)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == constant)
        array = numpy_helper.to_array(tensor).copy()
        array.reshape(-1)[array.size // 2] += amount
        tensor.CopyFrom(numpy_helper.from_array(array, constant))
        return model

    monkeypatch.setattr(glowserve_export.bundle, "forward_graph", write)
    text = message()
    assert text.startswith("log-likelihood, relative error is ")
    assert f"the layer to look at is {layer} of forward.onnx." in text


def _without(_: FoldedDequantization) -> None:
    return None


def _with_other_halves(learned: FoldedDequantization) -> FoldedDequantization:
    return replace(learned, networks=learned.networks[::-1])


def _not_drawn_in(learned: FoldedDequantization) -> FoldedDequantization:
    return replace(learned, margin=1e-3)


@pytest.mark.parametrize("change", [_without, _with_other_halves, _not_drawn_in])
def test_what_is_baked_wrongly_is_found(
    change: Callable[[FoldedDequantization], FoldedDequantization | None],
    message: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def changed(model: Glow) -> FoldedGlow:
        glow = fold_glow(model)
        assert glow.dequantization is not None
        return replace(glow, dequantization=change(glow.dequantization))

    monkeypatch.setattr(glowserve_export.source, "fold_glow", changed)
    text = message()
    assert text.startswith("log-likelihood, relative error is ")
    assert "the layer to look at is dequantization of forward.onnx." in text

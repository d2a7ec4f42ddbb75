"""The tutorial's model, which benchmarks compare ours with: its size, its likelihood, and its runs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from glowserve_training.checkpoint import load_checkpoint
from torch import Tensor, nn

from tests.benchmarks import bench_tutorial
from tests.benchmarks.tutorial_model import TutorialFlow, TutorialModel
from tests.training.conftest import JacobianLogDet, Perturb
from tests.training.models import in_double

Bench = Callable[..., list[dict[str, Any]]]
blocks = pytest.mark.parametrize("glow_block", [False, True], ids=["without block", "with block"])
shapes = pytest.mark.parametrize(("size", "channels"), [(4, 1), (8, 1), (4, 3)])


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def prepared(model: nn.Module, perturb: Perturb) -> Any:
    model = model.double().eval()
    perturb(model, 0.03)  # the networks are deep
    return model


def test_the_model_has_as_many_parameters_as_the_tutorials() -> None:
    assert parameters(TutorialModel(28, 1)) == 1_711_818


def test_the_block_adds_less_than_a_thousandth_of_the_parameters() -> None:
    plain, with_block = (parameters(TutorialModel(28, 1, glow_block=block)) for block in (False, True))

    assert plain < with_block < 1.001 * plain


@blocks
@shapes
def test_the_inverse_inverts_the_flow(
    size: int, channels: int, glow_block: bool, perturb: Perturb, generator: torch.Generator
) -> None:
    flow = prepared(in_double(TutorialFlow, size, channels, glow_block=glow_block), perturb)
    x = torch.randn(3, channels, size, size, generator=generator, dtype=torch.float64)

    latent, log_det = flow(x)
    back, inverse_log_det = flow.inverse(latent)

    assert latent.shape == (3, x[0].numel())
    torch.testing.assert_close(back, x, rtol=0, atol=1e-9)
    torch.testing.assert_close(inverse_log_det, -log_det, rtol=0, atol=1e-9)


@blocks
@shapes
def test_the_likelihood_follows_from_the_jacobian_of_the_map_from_noise_to_latents(
    size: int,
    channels: int,
    glow_block: bool,
    perturb: Perturb,
    jacobian_log_det: JacobianLogDet,
    generator: torch.Generator,
) -> None:
    model = prepared(in_double(TutorialModel, size, channels, n_bits=3, glow_block=glow_block), perturb)
    image = torch.randint(0, 256, (1, size, size, channels), generator=generator, dtype=torch.uint8)
    image.view(-1)[:2] = torch.tensor([0, 255])
    noise = torch.rand(1, size, size, channels, generator=generator, dtype=torch.float64)

    latent, _ = model.encode(image, noise)
    prior = torch.distributions.Normal(0, 1).log_prob(latent).sum(1)
    expected = prior + jacobian_log_det(lambda u: model.encode(image, u), noise)

    torch.testing.assert_close(model.log_prob(image, noise), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("noise", [0.0, 1 - 2**-24])
@pytest.mark.parametrize("value", [0, 255])
def test_the_ends_of_noise_and_pixel_values_have_a_likelihood(value: int, noise: float) -> None:
    images = torch.full((1, 8, 8, 1), value, dtype=torch.uint8)

    single = TutorialModel(8, 1).log_prob(images, torch.full(images.shape, noise))
    double = (
        TutorialModel(8, 1).double().log_prob(images, torch.full(images.shape, noise, dtype=torch.float64))
    )

    torch.testing.assert_close(single.double(), double, rtol=1e-5, atol=0)


def test_the_couplings_keep_what_they_are_conditional_on(
    perturb: Perturb, generator: torch.Generator
) -> None:
    model = TutorialModel(8, 1)
    perturb(model, 0.03)  # the networks are deep
    first, second = model.flow.below.bijectors[:2]
    x = torch.randn(2, 1, 8, 8, generator=generator)

    odd = torch.arange(8).add(torch.arange(8)[:, None]) % 2 == 1

    assert unchanged(first, x).equal(odd)
    assert unchanged(second, x).equal(~odd)


def unchanged(coupling: Any, x: Tensor) -> Tensor:
    y, _ = coupling(x)
    return (y == x).all(0).all(0)


def test_the_size_of_images_must_allow_two_squeezes() -> None:
    with pytest.raises(
        ValueError, match="image_size is 30; two squeezes halve it, so it must be a multiple of 4"
    ):
        TutorialModel(30, 1)


@pytest.fixture
def bench(few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """Runs the benchmark for the tutorial's models, and returns the figures of the one with Glow's block."""
    monkeypatch.syspath_prepend(str(Path(bench_tutorial.__file__).parent))

    def run(out: str, *flags: str, data: Path = few_digits, row: int = 1) -> list[dict[str, Any]]:
        command = ["bench", "--data", str(data), "--out", str(tmp_path / out), "--only", str(row), *flags]
        monkeypatch.setattr(sys, "argv", command)
        bench_tutorial.main()
        (file,) = (tmp_path / out).glob("*/seed-*/figures.json")
        figures = json.loads(file.read_text())["figures"]
        for one in figures:
            del one["cpu_minutes"]  # varies
        return list(figures)

    return run


def test_a_run_that_goes_on_to_a_later_mark_ends_where_one_without_a_break_does(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    first = bench("broken", "--images", "256", "--minutes")
    both = bench("broken", "--images", "256", "512", "--minutes")
    printed = capsys.readouterr().out

    assert [one["images_seen"] for one in both] == [256, 512]
    assert both[0] == first[0]
    assert both[1]["test"] < both[0]["test"]
    assert "the same with Glow's block" in printed
    assert f"{both[1]['test']:.3f}" in printed
    assert bench("whole", "--images", "512", "--minutes") == both[1:]


def test_a_mark_in_cpu_minutes_ends_a_run(bench: Bench) -> None:
    (figures,) = bench("out", "--images", "--minutes", "1e-9", row=0)

    assert figures["images_seen"] == 128


def test_our_row_is_a_run_of_glowserve_train_on_the_same_images(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        "--steps",
        "10",
        "--patience",
        "0",
        "--batch-size",
        "8",
        "--width",
        "4",
        "--steps-per-level",
        "1",
    )
    monkeypatch.setattr(bench_tutorial, "_ROWS", {"glowserve train": (None, flags)})

    (figures,) = bench("out", row=0)

    folder = tmp_path / "out" / "glowserve-train" / "seed-0"
    checkpoint = load_checkpoint(folder / "run" / "model.ckpt")
    stored = json.loads((folder / "figures.json").read_text())
    assert checkpoint.training.held_out_digest == stored["held_out"]
    assert figures["images_seen"] == 80
    assert figures["test"] == pytest.approx(checkpoint.training.metrics["test_bits_per_dim"], abs=1e-6)
    assert stored["cpu_seconds"] > 0


def test_runs_on_other_images_are_not_mixed(bench: Bench, tmp_path: Path, generator: torch.Generator) -> None:
    other = tmp_path / "other.npz"
    np.savez(other, images=torch.randint(0, 256, (60, 8, 8, 1), generator=generator).byte().numpy())
    bench("out", "--images", "128", "--minutes")

    with pytest.raises(SystemExit, match="has a run on other images; give another folder with --out"):
        bench("out", "--images", "128", "--minutes", data=other)

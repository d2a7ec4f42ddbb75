"""A complete configuration from a data source and a few fields; the others are derived."""

from __future__ import annotations

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_training.config import DataConfig, GlowConfig, Part, RunConfig
from glowserve_training.data import choose_splits, open_source
from glowserve_training.errors import DataError
from glowserve_training.presets import run_config
from PIL import Image

from glowserve.image_size import ImageSize
from tests.training.runs import PLAIN


def source(path: Path, *shape: int) -> str:
    """An .npz file of black images."""
    np.savez(path / "a.npz", images=np.zeros((60, *shape), np.uint8))
    return str(path / "a.npz")


def test_digits_need_only_their_name() -> None:
    config = run_config("digits")

    assert config.data == DataConfig(data="digits", image_size=8, channels=1)
    assert (config.model.image_size.stored, config.model.channels) == (8, 1)
    assert config.model.n_bits == 4
    assert config.model.levels == 2


def test_other_images_have_8_bits(tmp_path: Path) -> None:
    assert run_config(source(tmp_path, 8, 8)).model.n_bits == 8


@pytest.mark.parametrize(
    ("side", "image_size", "levels"),
    [
        *[(3, 4, 2), (4, 4, 2), (7, 4, 2), (8, 8, 2), (12, 12, 2), (16, 16, 2), (20, 20, 2), (28, 28, 2)],
        *[(30, 28, 2), (31, 28, 2), (32, 32, 3), (48, 48, 4), (50, 48, 4), (64, 64, 4), (1000, 64, 4)],
    ],
)
def test_the_image_size_follows_the_images_and_the_levels_follow_the_image_size(
    side: int, image_size: int, levels: int, tmp_path: Path
) -> None:
    config = run_config(source(tmp_path, side, side + 3))

    assert config.model.image_size == config.data.image_size == ImageSize.of(image_size)
    assert config.model.levels == levels
    assert image_size % 2**levels == 0


def test_larger_images_get_larger_models(tmp_path: Path) -> None:
    small, middle, large = (
        run_config("anywhere", image_size=size, channels=1, **PLAIN) for size in (16, 32, 64)
    )

    assert small.model.levels < middle.model.levels < large.model.levels
    assert small.model.width < middle.model.width
    assert small.steps < middle.steps
    assert large.batch_size < middle.batch_size
    assert middle.learning_rate > large.learning_rate


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_follow_the_first_image(channels: int, tmp_path: Path) -> None:
    config = run_config(source(tmp_path, 8, 8, channels))

    assert config.model.channels == config.data.channels == channels


def test_a_folder_of_photographs_gives_a_model_with_3_channels(tmp_path: Path) -> None:
    for i in range(60):
        Image.new("RGB", (40, 50)).save(tmp_path / f"{i}.jpg")

    config = run_config(str(tmp_path))

    assert (config.model.image_size.stored, config.model.channels) == (40, 3)


def test_every_field_can_be_given() -> None:
    given: dict[str, Any] = {
        "image_size": 24,
        "channels": 3,
        "n_bits": 3,
        "levels": 1,
        "steps_per_level": 5,
        "width": 7,
        "preprocessing": "logit",
        "checkerboards": 3,
        "coupling": "additive",
        "coupling_scale": "sigmoid",
        "parametrization": "plain",
        "coupling_actnorm": True,
        "dequantization": "variational",
        "pixel_width": 5,
        "spline_bins": 6,
        "spline_interval": 1.5,
        "class_count": 0,
        "steps": 11,
        "batch_size": 13,
        "learning_rate": 0.25,
        "clip_gradient_norm": 1.5,
        "warmup_steps": 3,
        "schedule": "constant",
        "weight_decay": 0.5,
        "average_decay": 0.5,
        "precision": "bf16-mixed",
        "condition_limit": 9.0,
        "max_rollbacks": 2,
        "patience": 4,
        "extensions": (Part(begin=10, end=12, patience=0),),
        "seed": 17,
    }
    model = {name: given[name] for name in inspect.signature(GlowConfig).parameters}
    training = {name: value for name, value in given.items() if name not in model}
    assert training.keys() == inspect.signature(RunConfig).parameters.keys() - {"model", "data", "size"}

    config = run_config("digits", split_seed=19, **given)

    assert config == RunConfig(
        model=GlowConfig(**model),
        data=DataConfig(data="digits", image_size=24, channels=3, split_seed=19),
        **training,
    )


def test_size_paper_is_that_of_kingma_and_dhariwal() -> None:
    config = run_config("digits", size="paper", image_size=32, channels=3)

    assert (config.model.levels, config.model.steps_per_level, config.model.width) == (3, 32, 512)
    assert (config.model.preprocessing, config.model.coupling_scale) == ("centre", "sigmoid")


DRAWING = {"preprocessing": "logit", "checkerboards": 4, "dequantization": "variational"}


@pytest.mark.parametrize(("share", "expected"), [(0.3, DRAWING), (0.2, PLAIN)])
@pytest.mark.parametrize("extreme", [0, 255])
def test_the_recipe_follows_from_the_share_of_values_that_are_black_or_white(
    extreme: int, share: float, expected: dict[str, Any], tmp_path: Path
) -> None:
    images = np.full((60, 10, 10), 128, np.uint8)
    images[:, : round(10 * share)] = extreme
    np.savez(tmp_path / "a.npz", images=images)

    config = run_config(str(tmp_path / "a.npz"), image_size=10, channels=1, levels=1)
    given = run_config(str(tmp_path / "a.npz"), image_size=10, channels=1, levels=1, checkerboards=1)

    assert {name: getattr(config.model, name) for name in expected} == expected
    assert given.model == replace(config.model, checkerboards=1)


@pytest.mark.parametrize(
    ("image_size", "drawings", "expected"),
    [
        *[(size, True, ("spline", 4, 64, 3100)) for size in (20, 28, 32)],
        *[(size, False, ("affine", 8, 128, 6000)) for size in (28, 32)],
        (16, True, ("affine", 12, 64, 1500)),
        (48, True, ("affine", 8, 128, 6000)),
    ],
)
def test_drawings_of_17_to_32_pixels_get_splines_and_fewer_steps_of_flow(
    image_size: int, drawings: bool, expected: tuple[str, int, int, int]
) -> None:
    config = run_config("anywhere", image_size=image_size, channels=1, **(DRAWING if drawings else PLAIN))

    model = config.model
    assert (model.coupling, model.steps_per_level, model.width, config.steps) == expected
    assert (model.coupling_scale, model.spline_bins, model.spline_interval) == ("tanh", 8, 3.0)


def test_held_out_images_play_no_part_in_the_shape_and_the_recipe(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    data = tmp_path / "images"
    data.mkdir()
    for i in range(60):
        Image.fromarray(rng.integers(1, 255, (10, 10), dtype=np.uint8)).save(data / f"{i:02d}.png")
    before = run_config(str(data))
    splits = choose_splits(open_source(str(data)), before.data)
    for name in ("validation", "calibration", "test"):
        for i in splits[name][1]:
            Image.new("RGB", (50, 50)).save(data / f"{i:02d}.png")

    assert run_config(str(data)) == before


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(ValueError, match="size is 'huge'; it must be one of small, paper"):
        run_config("digits", size="huge")


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(TypeError, match="stepz"):
        run_config("digits", stepz=3)


@pytest.mark.parametrize(("given", "image_size", "channels"), [("image_size", 4, 1), ("channels", 8, 3)])
def test_image_size_and_channels_can_be_given_one_without_the_other(
    given: str, image_size: int, channels: int
) -> None:
    config = run_config("digits", **{given: {"image_size": image_size, "channels": channels}[given]})

    assert (config.model.image_size.stored, config.model.channels) == (image_size, channels)


def test_a_source_is_not_opened_if_nothing_follows_from_its_images() -> None:
    config = run_config("/not/there/yet", image_size=8, channels=1, **PLAIN)

    assert config.data.data == "/not/there/yet"


def test_a_missing_source_is_refused() -> None:
    with pytest.raises(DataError, match="there is no such file or folder"):
        run_config("/not/there/yet")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"image_size": 9}, "image_size is 9 x 9; .* multiple of 2"),
        ({"levels": 4}, "image_size is 8 x 8; 4 levels halve height and width 4 times"),
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"batch_size": -1}, "batch_size is -1; it must be 1 or more"),
        ({"learning_rate": 0.0}, r"learning_rate is 0\.0; it must be a positive number"),
        ({"seed": -1}, "seed is -1; it must lie in 0"),
        ({"split_seed": -1}, "split_seed is -1; it must be 0 or more"),
    ],
)
def test_an_impossible_value_is_refused(wrong: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        run_config("digits", **wrong)  # type: ignore[arg-type]

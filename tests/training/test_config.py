"""Configurations refuse impossible values with a sentence that names the field, the value and the allowed values."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from glowserve_training import config
from glowserve_training.config import DataConfig, GlowConfig, stored_model
from glowserve_training.hardware import Hardware
from glowserve_training.layers import CONV1X1_CLASSES
from glowserve_training.stored import data_config, stored_fields

from glowserve.images import Preparation
from tests.training.runs import TinyRun


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"channels": 5}, r"channels is 5; it must be 1 \(grey\) or 3 \(RGB\), or 2 or 4 with alpha as data"),
        ({"n_bits": 0}, "n_bits is 0; it must lie in 1 to 8"),
        ({"n_bits": 9}, "n_bits is 9; it must lie in 1 to 8"),
        ({"levels": 0}, "levels is 0; it must be 1 or more"),
        ({"steps_per_level": 0}, "steps_per_level is 0; it must be 1 or more"),
        ({"width": -1}, "width is -1; it must be 1 or more"),
        (
            {"image_size": 12, "levels": 3},
            r"size is 12 x 12; .*multiple of 8: 8 x 8 or 16 x 16 .*fewer levels\)",
        ),
        (
            {"image_size": "30x64", "levels": 3},
            "size is 30 x 64; .* multiple of 8: 24 x 64 or 32 x 64 would do",
        ),
        ({"image_size": [14, 2], "levels": 2}, "size is 14 x 2; .* multiple of 4: 12 x 4 or 16 x 4 would do"),
        ({"image_size": "2x16384", "levels": 1}, "at most 16383 rows, as many columns, and 4194304 values"),
        ({"image_size": "4096x2048"}, "image_size is 4096 x 2048 with 1 channels; .* and 4194304 values"),
        ({"image_size": 0}, "image_size is 0 x 0.*positive multiple of 4"),
        ({"coupling": "spline"}, "coupling is 'spline'; it must be one of affine, additive"),
        ({"parametrization": "qr"}, "parametrization is 'qr'; it must be one of qlu, lu, orthogonal, plain"),
        ({"preprocessing": "center"}, "preprocessing is 'center'; it must be one of centre, logit"),
        ({"coupling_scale": "exp"}, "coupling_scale is 'exp'; it must be one of tanh, sigmoid"),
        ({"checkerboards": -1}, "checkerboards is -1; it must be 0 or more"),
        ({"pixel_width": 0}, "pixel_width is 0; it must be 1 or more"),
        ({"dequantization": "none"}, "dequantization is 'none'; it must be one of uniform, variational"),
    ],
)
def test_an_impossible_architecture_is_refused(changes: dict[str, Any], sentence: str) -> None:
    sizes = {"image_size": 8, "channels": 1, "levels": 2}

    with pytest.raises(ValueError, match=sentence):
        GlowConfig(**(sizes | changes))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"steps": 0}, "steps is 0; it must be 1 or more"),
        ({"batch_size": 0}, "batch_size is 0; it must be 1 or more"),
        ({"warmup_steps": 0}, "warmup_steps is 0; it must be 1 or more"),
        ({"learning_rate": -1.0}, r"learning_rate is -1\.0; it must be a positive number"),
        ({"learning_rate": math.inf}, "learning_rate is inf; it must be a positive number"),
        ({"clip_gradient_norm": math.nan}, "clip_gradient_norm is nan; it must be a positive number"),
        ({"schedule": "linear"}, "schedule is 'linear'; it must be one of cosine, constant"),
        ({"precision": "16"}, "precision is '16'; it must be one of 32-true, bf16-mixed"),
        ({"average_decay": 1.0}, r"average_decay is 1\.0; it must lie in \[0, 1\)"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; it must be 0 or a positive number"),
        ({"condition_limit": 1.0}, r"condition_limit is 1\.0; it must be greater than 1"),
        ({"max_rollbacks": -1}, "max_rollbacks is -1; it must be 0 or more"),
        ({"seed": -1}, "seed is -1; it must lie in 0"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must lie in 0"),
    ],
)
def test_an_impossible_run_is_refused(changes: dict[str, Any], sentence: str, tiny_run: TinyRun) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(tiny_run(), **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"devices": 0}, "devices is 0; it must be 1 or more"),
        ({"nodes": -1}, "nodes is -1; it must be 1 or more"),
        ({"device": "tpu"}, "device is 'tpu'; it must be one of auto, cpu, cuda"),
    ],
)
def test_impossible_hardware_is_refused(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        Hardware(**changes)


def test_a_negative_split_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="split_seed is -1; it must be 0 or more"):
        DataConfig(data="digits", image_size=8, channels=1, split_seed=-1)


def test_dimensions_are_the_values_of_an_image() -> None:
    assert GlowConfig(image_size=8, channels=3).dimensions == 8 * 8 * 3
    assert GlowConfig(image_size="8x24", channels=2).dimensions == 8 * 24 * 2


def test_the_processes_of_several_nodes_are_counted_together() -> None:
    assert Hardware(devices=4, nodes=2).processes == 8


def test_fields_that_a_stored_configuration_lacks_mean_what_was_fixed_before_they_existed() -> None:
    stored = {"image_size": 8, "channels": 1, "levels": 2, "width": 7, "parametrization": "lu"}

    found = GlowConfig(**stored_model(stored))

    assert found == GlowConfig(
        **stored,  # type: ignore[arg-type]
        preprocessing="centre",
        checkerboards=0,
        coupling_scale="sigmoid",
        pixel_width=7,
    )


@pytest.mark.parametrize(("image_size", "stored"), [(8, 8), ("8x24", [8, 24])])
def test_a_configuration_is_read_as_it_was_stored(image_size: int | str, stored: int | list[int]) -> None:
    written = GlowConfig(
        image_size=image_size,
        channels=3,
        levels=1,
        preprocessing="logit",
        checkerboards=2,
        pixel_width=9,
        dequantization="variational",
    )

    fields = stored_fields(written)
    assert fields["image_size"] == stored
    assert GlowConfig(**stored_model(fields)) == written


def test_older_versions_read_the_data_of_a_run_that_uses_nothing_younger() -> None:
    plain = DataConfig(data="digits", image_size=8, channels=1)
    padded = replace(plain, preparation=Preparation(fit="pad", bits_used=12))

    assert stored_fields(plain)["preparation"] == {"filter": "bicubic", "background": 255}
    assert data_config(stored_fields(padded)) == padded


def test_every_parametrization_has_a_class() -> None:
    assert CONV1X1_CLASSES.keys() == set(config.PARAMETRIZATIONS)

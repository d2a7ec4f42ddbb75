"""The settings of a service: their defaults, their ranges, and settings that depend on each other."""

from __future__ import annotations

import os
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from glowserve_service.config import ServiceConfig


def test_every_setting_but_the_repository_has_a_default() -> None:
    config = ServiceConfig(repository=Path("models"))
    assert (config.host, config.port, config.metrics_port) == ("127.0.0.1", 8001, 8002)
    assert (config.max_images_per_call, config.max_samples_per_call) == (
        256,
        100_000,
    )  # the defaults that glow_service.proto names


def test_settings_are_immutable() -> None:
    with pytest.raises(FrozenInstanceError):
        ServiceConfig(repository=Path()).port = 1  # type: ignore[misc]


def test_every_setting_has_a_help_text() -> None:
    assert all(setting.metadata["help"] for setting in fields(ServiceConfig))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("device", "tpu"),
        ("device", ""),
        ("log_format", "yaml"),
        ("log_level", "INFO"),
        ("port", -1),
        ("port", 65_536),
        ("metrics_port", -1),
        ("metrics_port", 65_536),
        ("instances", -1),
        ("gpu_memory_mib", -1),
        ("max_queue_delay_ms", -0.1),
        ("max_queue_delay_ms", float("nan")),
        ("max_queue_delay_ms", float("inf")),
        ("drain_seconds", -1.0),
        ("drain_seconds", float("nan")),
        ("drain_seconds", float("inf")),
        ("poll_seconds", -1.0),
        ("canary_seconds", float("nan")),
        ("admin", "yes"),
        ("wait_for_models", "yes"),
        ("versions", "all"),
        ("max_batch_size", 0),
        ("max_batch_size", -1),
        ("max_queue_size", 0),
        ("max_images_per_call", 0),
        ("max_samples_per_call", 0),
        ("max_pixels_per_call", 0),
        ("max_message_mib", 0),
        ("max_message_mib", 2048),
    ],
)
def test_a_setting_out_of_range_is_refused_by_name_and_value(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"^{name} is {value!r}"):
        ServiceConfig(repository=Path(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", 65_535),
        ("instances", 0),
        ("max_queue_delay_ms", 0.0),
        ("drain_seconds", 0.0),
        ("max_batch_size", 1),
        ("max_message_mib", 2047),
    ],
)
def test_the_limits_of_a_range_are_allowed(name: str, value: Any) -> None:
    assert getattr(ServiceConfig(repository=Path(), **{name: value}), name) == value


@pytest.mark.parametrize("name", ["max_images_per_call", "max_batch_size"])
def test_a_queue_must_have_room_for_the_largest_call_and_a_full_batch(name: str) -> None:
    sizes = {"max_queue_size": 8, "max_images_per_call": 8, "max_batch_size": 8}
    ServiceConfig(repository=Path(), **sizes)
    with pytest.raises(ValueError, match=f"max_queue_size is 8; it must be at least {name}, 9"):
        ServiceConfig(repository=Path(), **sizes | {name: 9})


def test_by_default_there_is_an_instance_for_each_core_or_one_on_a_gpu() -> None:
    cores = len(os.sched_getaffinity(0))
    config = ServiceConfig(repository=Path())
    assert (config.instances_on("cpu"), config.instances_on("cuda")) == (cores, 1)
    config = ServiceConfig(repository=Path(), instances=3)
    assert (config.instances_on("cpu"), config.instances_on("cuda")) == (3, 3)


@pytest.mark.parametrize(
    ("images", "size", "share"),
    [(64, 1000, 0.25), (64, 32 * 2**20, 0.5), (1, 1000, 1 / 32), (0, 0, 1 / 32), (-5, 0, 1 / 32)],
    ids=["images", "bytes", "requests", "nothing", "nonsense"],
)
def test_the_share_of_a_call_is_the_largest_of_images_bytes_and_requests(
    images: int, size: int, share: float
) -> None:
    """With 0, any number of empty requests would be read from a stream before the first is answered."""
    config = ServiceConfig(repository=Path(), max_images_per_call=256, max_message_mib=64)
    assert config.share_of_a_call(images, size) == share

"""The batch of a step is a function of seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from glowserve.images import UInt8Array
from training.data import StepLoader, evaluation_batches
from training.data.batches import Batch


@pytest.fixture
def images() -> UInt8Array:
    """30 images that a pixel tells apart, uint8 [30, 2, 2, 1]."""
    return np.arange(30, dtype=np.uint8).repeat(4).reshape(30, 2, 2, 1)


def loader(images: UInt8Array, *, seed: int = 0, start: int = 0, batch_size: int = 8) -> StepLoader:
    return StepLoader(images, batch_size=batch_size, steps=20, seed=seed, start=start)


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def order(images: UInt8Array, *, seed: int = 0, batch_size: int = 8) -> list[int]:
    """Which images the steps take, one after the other."""
    steps = loader(images, seed=seed, batch_size=batch_size)
    return torch.cat([batch[:, 0, 0, 0] for batch, _ in steps]).tolist()


@pytest.mark.parametrize("start", [1, 7, 19])
def test_a_batch_is_the_same_whatever_ran_before(images: UInt8Array, start: int) -> None:
    undisturbed = list(loader(images))
    torch.manual_seed(99)
    np.random.default_rng(99).random(7)

    resumed = list(loader(images, start=start))

    assert len(undisturbed) == 20
    assert len(resumed) == 20 - start
    assert all(map(equal, resumed, undisturbed[start:]))


def test_a_loader_can_be_run_through_again(images: UInt8Array) -> None:
    steps = loader(images)

    assert all(map(equal, list(steps), list(steps)))


@pytest.mark.parametrize("start", [0, 7, 20])
def test_the_length_is_the_full_number_of_steps_wherever_it_starts(images: UInt8Array, start: int) -> None:
    assert len(loader(images, start=start)) == 20


@pytest.mark.parametrize("batch_size", [1, 8, 30, 70])
def test_each_epoch_takes_every_image_once(images: UInt8Array, batch_size: int) -> None:
    taken = order(images, batch_size=batch_size)
    assert len(taken) == 20 * batch_size

    epochs = [taken[first : first + 30] for first in range(0, len(taken) - 29, 30)]

    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    last = taken[len(epochs) * 30 :]
    assert len(set(last)) == len(last)


def test_another_batch_size_takes_the_images_in_the_same_order(images: UInt8Array) -> None:
    small, large = order(images, batch_size=3), order(images, batch_size=8)

    assert large[: len(small)] == small


def test_another_seed_takes_them_in_another_order_with_other_noise(images: UInt8Array) -> None:
    assert order(images, seed=0) != order(images, seed=1)
    (_, noise), (_, other) = next(iter(loader(images, seed=0))), next(iter(loader(images, seed=1)))
    assert not torch.isclose(noise, other).any()


def test_the_images_come_as_they_are(images: UInt8Array) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    known = {image.tobytes() for image in images}

    for batch, _ in loader(images):
        assert batch.dtype == torch.uint8
        assert batch.shape == (8, 4, 4, 3)
        assert {image.numpy().tobytes() for image in batch} <= known


def test_noise_is_uniform_float32_below_1_and_never_the_same_twice(images: UInt8Array) -> None:
    noises = [noise for _, noise in loader(images, batch_size=64)]
    noise = torch.stack(noises)

    assert noise.dtype == torch.float32
    assert noise.shape == (20, 64, 2, 2, 1)
    assert noise.min() >= 0
    assert noise.max() < 1
    histogram = torch.histc(noise, 10, 0, 1)
    assert (histogram / noise.numel() - 0.1).abs().max() < 0.02
    assert len(noise.unique()) > 0.999 * noise.numel()


def test_evaluation_takes_all_images_in_order_with_the_same_noise_each_time(images: UInt8Array) -> None:
    batches = evaluation_batches(images, 8)

    assert [len(batch) for batch, _ in batches] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.from_numpy(images))
    assert all(map(equal, batches, evaluation_batches(images, 8)))
    noise = torch.cat([noise for _, noise in batches])
    assert noise.dtype == torch.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) > 110  # of 120: the batches do not share theirs
    assert not torch.equal(evaluation_batches(images, 8, seed=1)[0][1], batches[0][1])


def test_evaluation_does_not_use_the_noise_of_training(images: UInt8Array) -> None:
    (_, training), (_, evaluation) = next(iter(loader(images))), evaluation_batches(images, 8)[0]

    assert not torch.isclose(training, evaluation).any()

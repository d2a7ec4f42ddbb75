"""The batch of a step is a function of seed and step alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from glowserve_training.data import StepLoader, evaluation_batches
from glowserve_training.data.batches import Batch

from glowserve.images import UInt8Array


@pytest.fixture
def images() -> UInt8Array:
    """30 images whose pixels have the image's index as value, uint8 [30, 2, 2, 1]."""
    return np.arange(30, dtype=np.uint8).repeat(4).reshape(30, 2, 2, 1)


def loader(
    images: UInt8Array,
    *,
    seed: int = 0,
    start: int = 0,
    batch_size: int = 8,
    rank: int = 0,
    world_size: int = 1,
) -> StepLoader:
    return StepLoader(
        images,
        batch_size=batch_size,
        steps=20,
        seed=seed,
        start=start,
        rank=rank,
        world_size=world_size,
    )


def equal(one: Batch, other: Batch) -> bool:
    return torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])


def order(images: UInt8Array, *, seed: int = 0, batch_size: int = 8) -> list[int]:
    """The indices of the images in all batches, in order."""
    steps = loader(images, seed=seed, batch_size=batch_size)
    return torch.cat([batch[:, 0, 0, 0] for batch, _ in steps]).tolist()


@pytest.mark.parametrize("start", [1, 7, 19])
def test_a_batch_does_not_depend_on_the_steps_before_it(images: UInt8Array, start: int) -> None:
    uninterrupted = list(loader(images))
    torch.manual_seed(99)
    np.random.default_rng(99).random(7)

    resumed = list(loader(images, start=start))

    assert len(uninterrupted) == 20
    assert len(resumed) == 20 - start
    assert all(map(equal, resumed, uninterrupted[start:]))


def test_a_loader_can_be_iterated_again(images: UInt8Array) -> None:
    steps = loader(images)

    assert all(map(equal, list(steps), list(steps)))


@pytest.mark.parametrize("start", [0, 7, 20])
def test_the_length_is_the_number_of_all_steps_whatever_the_start(images: UInt8Array, start: int) -> None:
    assert len(loader(images, start=start)) == 20


@pytest.mark.parametrize("batch_size", [1, 8, 30, 70])
def test_each_epoch_has_every_image_once(images: UInt8Array, batch_size: int) -> None:
    indices = order(images, batch_size=batch_size)
    assert len(indices) == 20 * batch_size

    epochs = [indices[first : first + 30] for first in range(0, len(indices) - 29, 30)]

    assert all(sorted(epoch) == list(range(30)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    last = indices[len(epochs) * 30 :]
    assert len(set(last)) == len(last)


def test_another_batch_size_has_the_images_in_the_same_order(images: UInt8Array) -> None:
    small, large = order(images, batch_size=3), order(images, batch_size=8)

    assert large[: len(small)] == small


def test_another_seed_gives_another_order_and_other_noise(images: UInt8Array) -> None:
    assert order(images, seed=0) != order(images, seed=1)
    (_, noise), (_, other) = next(iter(loader(images, seed=0))), next(iter(loader(images, seed=1)))
    assert not torch.isclose(noise, other).any()


def test_the_images_are_unchanged(images: UInt8Array) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 4, 4, 3), dtype=np.uint8)
    known = {image.tobytes() for image in images}

    for batch, _ in loader(images):
        assert batch.dtype == torch.uint8
        assert batch.shape == (8, 4, 4, 3)
        assert {image.numpy().tobytes() for image in batch} <= known


def test_noise_is_uniform_float32_below_1_and_never_repeats(images: UInt8Array) -> None:
    noises = [noise for _, noise in loader(images, batch_size=64)]
    noise = torch.stack(noises)

    assert noise.dtype == torch.float32
    assert noise.shape == (20, 64, 2, 2, 1)
    assert noise.min() >= 0
    assert noise.max() < 1
    histogram = torch.histc(noise, 10, 0, 1)
    assert (histogram / noise.numel() - 0.1).abs().max() < 0.02
    assert len(noise.unique()) > 0.999 * noise.numel()


# Ranks


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 1), (4, 4, 1), (3, 3, 3), (8, 8, 3)]
)  # D 1, 4, 16, 27, 192
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_parts_of_all_ranks_are_the_batch_of_a_single_process(
    shape: tuple[int, ...], world_size: int
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    single = list(loader(images))

    ranks = [list(loader(images, rank=rank, world_size=world_size)) for rank in range(world_size)]

    for step, batch in enumerate(single):
        parts = [rank[step] for rank in ranks]
        assert [part.shape for part, _ in parts] == [(8 // world_size, *shape)] * world_size
        together = torch.cat([part for part, _ in parts]), torch.cat([noise for _, noise in parts])
        assert equal(together, batch)


@pytest.mark.parametrize(("shape", "floats"), [((2, 2, 1), 8), ((4, 4, 1), 16), ((3, 3, 3), 32)])
def test_each_position_starts_at_a_counter_value_of_the_stream_of_its_step(
    shape: tuple[int, ...], floats: int
) -> None:
    """Interrupted runs of older versions resume with the same noise where D is a multiple of 8."""
    images = np.zeros((30, *shape), np.uint8)

    for step, (_, noise) in enumerate(loader(images, seed=5)):
        stream = np.random.Generator(np.random.Philox(key=[5, 1], counter=[0, 0, 0, step]))
        expected = stream.random((8, floats), dtype=np.float32)[:, : noise[0].numel()]
        np.testing.assert_array_equal(noise.flatten(1).numpy(), expected)


@pytest.mark.parametrize("start", [1, 19])
def test_a_rank_resumes_at_its_step(images: UInt8Array, start: int) -> None:
    uninterrupted = list(loader(images, rank=1, world_size=4))

    assert all(map(equal, loader(images, rank=1, world_size=4, start=start), uninterrupted[start:]))


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 4, 1), (3, 3, 3)])
def test_the_noise_of_a_position_depends_only_on_seed_step_and_position(shape: tuple[int, ...]) -> None:
    images = np.zeros((30, *shape), np.uint8)

    small, large = list(loader(images, batch_size=3)), list(loader(images[:7], batch_size=8))

    for (_, some), (_, more) in zip(small, large, strict=True):
        assert torch.equal(some, more[:3])
    all_noise = torch.cat([noise for _, noise in large])
    assert len(all_noise.unique()) == all_noise.numel()


def test_a_batch_that_cannot_be_divided_among_the_ranks_is_refused(images: UInt8Array) -> None:
    with pytest.raises(
        ValueError, match="batch_size is 8 and world_size is 3; batch_size must be a multiple of world_size"
    ):
        loader(images, world_size=3)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_out_of_range_is_refused(rank: int, images: UInt8Array) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}; it must lie in 0 to 1, as world_size is 2"):
        loader(images, rank=rank, world_size=2)


def test_a_world_size_of_0_is_refused(images: UInt8Array) -> None:
    with pytest.raises(ValueError, match="world_size is 0; it must be 1 or more"):
        loader(images, world_size=0)


# Evaluation


def test_evaluation_has_all_images_in_order_with_the_same_noise_each_time(images: UInt8Array) -> None:
    batches = evaluation_batches(images, 8)

    assert [len(batch) for batch, _ in batches] == [8, 8, 8, 6]
    assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.from_numpy(images))
    assert all(map(equal, batches, evaluation_batches(images, 8)))
    noise = torch.cat([noise for _, noise in batches])
    assert noise.dtype == torch.float32
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) > 110  # of 120: batches have different noise
    assert not torch.equal(evaluation_batches(images, 8, seed=1)[0][1], batches[0][1])


def test_evaluation_has_other_noise_than_training(images: UInt8Array) -> None:
    (_, training), (_, evaluation) = next(iter(loader(images))), evaluation_batches(images, 8)[0]

    assert not torch.isclose(training, evaluation).any()


def test_the_noise_of_evaluation_is_that_of_older_versions(images: UInt8Array) -> None:
    """The figures in checkpoints were measured with it."""
    batches = evaluation_batches(images, 8, seed=5)

    for first, (_, noise) in zip((0, 8, 16, 24), batches, strict=True):
        stream = np.random.Generator(np.random.Philox(key=[5, 2], counter=[0, 0, 0, first]))
        expected = stream.random((min(8, 30 - first), 2, 2, 1), dtype=np.float32)
        np.testing.assert_array_equal(noise.numpy(), expected)


def test_each_draw_has_other_noise_for_the_same_images(images: UInt8Array) -> None:
    draws = [evaluation_batches(images, 8, draw=draw) for draw in range(4)]

    assert all(map(equal, draws[0], evaluation_batches(images, 8)))
    assert all(map(equal, draws[3], evaluation_batches(images, 8, draw=3)))
    for batches in draws:
        assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.from_numpy(images))
    noise = torch.stack([torch.cat([noise for _, noise in batches]) for batches in draws])
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) > 0.999 * noise.numel()  # no two draws share noise


def test_a_negative_draw_is_refused(images: UInt8Array) -> None:
    with pytest.raises(ValueError, match="draw is -1; it must be 0 or more"):
        evaluation_batches(images, 8, draw=-1)


def test_read_only_images_can_be_evaluated(images: UInt8Array) -> None:
    read_only = images.copy()
    read_only.flags.writeable = False

    assert all(map(equal, evaluation_batches(read_only, 8), evaluation_batches(images, 8)))

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
    """30 images that a pixel tells apart, uint8 [30, 2, 2, 1]."""
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


# Ranks


@pytest.mark.parametrize(
    "shape", [(1, 1, 1), (2, 2, 1), (4, 4, 1), (3, 3, 3), (8, 8, 3)]
)  # D 1, 4, 16, 27, 192
@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
def test_the_parts_of_the_ranks_are_the_batch_of_one_alone(shape: tuple[int, ...], world_size: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (30, *shape), dtype=np.uint8)
    alone = list(loader(images))

    ranks = [list(loader(images, rank=rank, world_size=world_size)) for rank in range(world_size)]

    for step, batch in enumerate(alone):
        parts = [rank[step] for rank in ranks]
        assert [part.shape for part, _ in parts] == [(8 // world_size, *shape)] * world_size
        together = torch.cat([part for part, _ in parts]), torch.cat([noise for _, noise in parts])
        assert equal(together, batch)


@pytest.mark.parametrize(("shape", "floats"), [((2, 2, 1), 8), ((4, 4, 1), 16), ((3, 3, 3), 32)])
def test_a_place_takes_as_few_whole_counts_of_the_stream_of_its_step_as_will_do(
    shape: tuple[int, ...], floats: int
) -> None:
    """A run that began with an older version goes on with the same noise, where D is a multiple of 8."""
    images = np.zeros((30, *shape), np.uint8)

    for step, (_, noise) in enumerate(loader(images, seed=5)):
        stream = np.random.Generator(np.random.Philox(key=[5, 1], counter=[0, 0, 0, step]))
        expected = stream.random((8, floats), dtype=np.float32)[:, : noise[0].numel()]
        np.testing.assert_array_equal(noise.flatten(1).numpy(), expected)


@pytest.mark.parametrize("start", [1, 19])
def test_a_rank_resumes_where_it_was(images: UInt8Array, start: int) -> None:
    undisturbed = list(loader(images, rank=1, world_size=4))

    assert all(map(equal, loader(images, rank=1, world_size=4, start=start), undisturbed[start:]))


@pytest.mark.parametrize("shape", [(2, 2, 1), (4, 4, 1), (3, 3, 3)])
def test_the_noise_of_a_place_depends_on_seed_step_and_place_alone(shape: tuple[int, ...]) -> None:
    images = np.zeros((30, *shape), np.uint8)

    small, large = list(loader(images, batch_size=3)), list(loader(images[:7], batch_size=8))

    for (_, some), (_, more) in zip(small, large, strict=True):
        assert torch.equal(some, more[:3])
    everything = torch.cat([noise for _, noise in large])
    assert len(everything.unique()) == everything.numel()


def test_a_batch_that_cannot_be_divided_among_the_ranks_is_refused(images: UInt8Array) -> None:
    with pytest.raises(
        ValueError, match="batch_size is 8 and world_size is 3; batch_size must be a multiple of world_size"
    ):
        loader(images, world_size=3)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_that_is_not_there_is_refused(rank: int, images: UInt8Array) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}; it must lie in 0 to 1, as world_size is 2"):
        loader(images, rank=rank, world_size=2)


def test_no_ranks_at_all_are_refused(images: UInt8Array) -> None:
    with pytest.raises(ValueError, match="world_size is 0; it must be 1 or more"):
        loader(images, world_size=0)


# Evaluation


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


def test_the_noise_of_evaluation_is_what_it_has_always_been(images: UInt8Array) -> None:
    """The figures of finished models were measured with it."""
    batches = evaluation_batches(images, 8, seed=5)

    for first, (_, noise) in zip((0, 8, 16, 24), batches, strict=True):
        stream = np.random.Generator(np.random.Philox(key=[5, 2], counter=[0, 0, 0, first]))
        expected = stream.random((min(8, 30 - first), 2, 2, 1), dtype=np.float32)
        np.testing.assert_array_equal(noise.numpy(), expected)


def test_each_draw_is_another_noise_of_the_same_images(images: UInt8Array) -> None:
    draws = [evaluation_batches(images, 8, draw=draw) for draw in range(4)]

    assert all(map(equal, draws[0], evaluation_batches(images, 8)))
    assert all(map(equal, draws[3], evaluation_batches(images, 8, draw=3)))
    for batches in draws:
        assert torch.equal(torch.cat([batch for batch, _ in batches]), torch.from_numpy(images))
    noise = torch.stack([torch.cat([noise for _, noise in batches]) for batches in draws])
    assert noise.min() >= 0
    assert noise.max() < 1
    assert len(noise.unique()) > 0.999 * noise.numel()  # no draw has a part of another


def test_a_negative_draw_is_refused(images: UInt8Array) -> None:
    with pytest.raises(ValueError, match="draw is -1; it must be 0 or more"):
        evaluation_batches(images, 8, draw=-1)


def test_images_that_must_not_be_written_to_are_evaluated_like_any(images: UInt8Array) -> None:
    locked = images.copy()
    locked.flags.writeable = False

    assert all(map(equal, evaluation_batches(locked, 8), evaluation_batches(images, 8)))

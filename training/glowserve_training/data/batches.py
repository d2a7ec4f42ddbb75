"""Batches as a pure function of seed and step.

The images and the dequantization noise of training step t depend only on the seed, t, and the position in the batch.
So the step number is the whole state of the data: a resumed run gets the same batches as an uninterrupted one, and no
generator's state has to be saved.

Each of R ranks makes its own B / R positions of the batch; together they equal the batch of a single process. Philox
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) is a function of key and counter, so that the noise
of a position can be computed without the noise of the positions before it.

Shapes: B images in a batch, H W C, D = H * W * C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from glowserve.images import UInt8Array

# Uses of random streams; streams of different uses never overlap.
_ORDER, _NOISE, _EVALUATION = range(3)
# Philox yields four 64-bit numbers for each counter value, from which NumPy makes eight float32.
_FLOATS_PER_COUNTER = 8

Batch = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]
"""Images, uint8 [B, H, W, C], dequantization noise in [0, 1), float32 [B, H, W, C], and classes, int64 [B], if any."""


class StepLoader(DataLoader[Batch]):
    """The batches of steps `start` to `steps` - 1.

    Its length is `steps` even when `start` is not 0, because Lightning takes it for the length of the epoch that it
    resumes in the middle of.

    Args:
        images: uint8 [N, H, W, C].
        batch_size: B, over all ranks.
        steps: steps of the whole run.
        seed: seed of order and noise.
        start: the first step, counted from 0.
        rank: which part of each batch is yielded, images and noise [B / R, H, W, C].
        world_size: R, the number of ranks.
        pin_memory: whether batches are in pinned memory, from which copies to a GPU are asynchronous.
        labels: the classes of the images, [N]; None if batches have none.

    Raises:
        ValueError: `batch_size` is not a multiple of `world_size`, or `rank` is out of range.
    """

    def __init__(
        self,
        images: UInt8Array,
        *,
        batch_size: int,
        steps: int,
        seed: int,
        start: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
        labels: npt.NDArray[np.int64] | None = None,
    ) -> None:
        dataset = _StepDataset(images, labels, batch_size, seed, _positions(batch_size, rank, world_size))
        super().__init__(dataset, batch_size=None, sampler=_Steps(start, steps), pin_memory=pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the trainer saves the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Does nothing; Lightning requires it to resume in the middle of an epoch."""


class _Steps(Sampler[int]):
    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps = start, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, self._steps))

    def __len__(self) -> int:
        return self._steps


def _positions(batch_size: int, rank: int, world_size: int) -> range:
    """The positions of a rank in a batch."""
    if world_size < 1:
        raise ValueError(f"world_size is {world_size}; it must be 1 or more")
    if not 0 <= rank < world_size:
        raise ValueError(
            f"rank is {rank}; it must lie in 0 to {world_size - 1}, as world_size is {world_size}"
        )
    if batch_size % world_size:
        raise ValueError(
            f"batch_size is {batch_size} and world_size is {world_size}; batch_size must be a multiple of world_size"
        )
    share = batch_size // world_size
    return range(rank * share, (rank + 1) * share)


class _StepDataset(Dataset[Batch]):
    """Item t is a rank's part of the batch of step t."""

    def __init__(
        self,
        images: UInt8Array,
        labels: npt.NDArray[np.int64] | None,
        batch_size: int,
        seed: int,
        positions: range,
    ) -> None:
        self._images, self._labels = images, labels
        self._batch_size, self._seed, self._positions = batch_size, seed, positions
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> Batch:
        n = len(self._images)
        positions = step * self._batch_size + np.asarray(self._positions)
        epochs = positions // n
        indices = np.empty_like(positions)
        for epoch in np.unique(epochs):
            in_epoch = epochs == epoch
            indices[in_epoch] = self._order(int(epoch))[positions[in_epoch] % n]
        images = self._images[indices]
        noise = torch.from_numpy(self._noise(step, images.shape))
        if self._labels is None:
            return torch.from_numpy(images), noise
        return torch.from_numpy(images), noise, torch.from_numpy(self._labels[indices])

    def _noise(self, step: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [B / R, H, W, C]. Each position starts at a counter value of its own; surplus numbers are dropped."""
        dimensions = math.prod(shape[1:])
        counters = -(-dimensions // _FLOATS_PER_COUNTER)
        generator = _generator(self._seed, _NOISE, step, first=self._positions.start * counters)
        noise = generator.random((shape[0], counters * _FLOATS_PER_COUNTER), dtype=np.float32)
        return noise[:, :dimensions].reshape(shape)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, _ORDER, epoch).permutation(len(self._images))


def evaluation_batches(
    images: UInt8Array, batch_size: int, seed: int = 0, *, draw: int = 0
) -> list[tuple[Tensor, Tensor]]:
    """All images in order, with noise that depends only on seed, draw and batch, so that runs are comparable.

    Args:
        images: uint8 [N, H, W, C].
        batch_size: B.
        seed: seed of the noise.
        draw: index of one of many independent draws of the noise.

    Raises:
        ValueError: `draw` is negative.
    """
    if draw < 0:
        raise ValueError(f"draw is {draw}; it must be 0 or more")
    batches: list[tuple[Tensor, Tensor]] = []
    for first in range(0, len(images), batch_size):
        part = np.require(
            images[first : first + batch_size], requirements="W"
        )  # torch warns about read-only arrays
        noise = _generator(seed, _EVALUATION, first, draw=draw).random(part.shape, dtype=np.float32)
        batches.append((torch.from_numpy(part), torch.from_numpy(noise)))
    return batches


def _generator(seed: int, use: int, index: int, *, draw: int = 0, first: int = 0) -> np.random.Generator:
    """A separate stream for each (seed, use, index, draw), which skips the first `first` counter values."""
    return np.random.Generator(np.random.Philox(key=[seed, use], counter=[first, 0, draw, index]))

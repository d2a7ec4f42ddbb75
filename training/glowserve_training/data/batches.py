"""Batches as a pure function of seed and step.

The images and the dequantization noise of training step t depend on (seed, t) and the place in the batch, and on
nothing that ran before. So a position in the data is one number, a resumed run sees what an undisturbed one sees,
and no generator's state needs saving.

Nor does it matter who makes them: of R ranks, each makes its own B / R places of the batch, and together they are
what one alone would make. Philox (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) is a function
of key and counter, so the noise of a place is found without that of the places before.

Shapes: B images in a batch, H W C, D = H * W * C.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from glowserve.images import UInt8Array

# What a stream of random numbers is for; streams of different use never overlap.
_ORDER, _NOISE, _EVALUATION = range(3)
# A count of Philox yields 4 numbers of 64 bits, of which NumPy makes 8 float32.
_FLOATS_A_COUNT = 8

Batch = tuple[Tensor, Tensor]
"""Images, uint8 [B, H, W, C], and dequantization noise in [0, 1), float32 [B, H, W, C]."""


class StepLoader(DataLoader[Batch]):
    """The batches of steps `start` to `steps` - 1.

    Its length is the full number of steps even when it starts later: Lightning takes it for the length of the
    epoch that it resumes in the middle of.

    Args:
        images: uint8 [N, H, W, C].
        batch_size: B, over all ranks.
        steps: of the whole run.
        seed: of order and noise.
        start: the first step that is still to do.
        rank: which part of each batch is yielded, images and noise [B / R, H, W, C].
        world_size: R, the number of parts.
        pin_memory: whether batches lie where a GPU can fetch them by itself, without the host's waiting.

    Raises:
        ValueError: `batch_size` cannot be divided by `world_size`, or there is no such rank.
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
    ) -> None:
        dataset = _StepDataset(images, batch_size, seed, _places(batch_size, rank, world_size))
        super().__init__(dataset, batch_size=None, sampler=_Steps(start, steps), pin_memory=pin_memory)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the position is the step, which the trainer keeps."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to do; its presence tells Lightning that resuming inside an epoch is sound."""


class _Steps(Sampler[int]):
    def __init__(self, start: int, steps: int) -> None:
        self._start, self._steps = start, steps

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._start, self._steps))

    def __len__(self) -> int:
        return self._steps


def _places(batch_size: int, rank: int, world_size: int) -> range:
    """The places of a rank in a batch."""
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
    """Item t is what lies at some places of the batch of step t."""

    def __init__(self, images: UInt8Array, batch_size: int, seed: int, places: range) -> None:
        self._images, self._batch_size, self._seed, self._places = images, batch_size, seed, places
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> Batch:
        n = len(self._images)
        places = step * self._batch_size + np.asarray(self._places)
        epochs = places // n
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[places[here] % n]
        images = self._images[indices]
        return torch.from_numpy(images), torch.from_numpy(self._noise(step, images.shape))

    def _noise(self, step: int, shape: tuple[int, ...]) -> np.ndarray:
        """float32 [B / R, H, W, C]. Each place has whole counts of its own, the last of which may go to waste."""
        dimensions = math.prod(shape[1:])
        counts = -(-dimensions // _FLOATS_A_COUNT)
        generator = _generator(self._seed, _NOISE, step, first=self._places.start * counts)
        noise = generator.random((shape[0], counts * _FLOATS_A_COUNT), dtype=np.float32)
        return noise[:, :dimensions].reshape(shape)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, _ORDER, epoch).permutation(len(self._images))


def evaluation_batches(images: UInt8Array, batch_size: int, seed: int = 0, *, draw: int = 0) -> list[Batch]:
    """All images in order, each with noise that depends on seed, draw and batch alone: comparable between runs.

    Args:
        images: uint8 [N, H, W, C].
        batch_size: B.
        seed: of the noise.
        draw: which of many independent noises; several of them are samples of the same images' dequantization.

    Raises:
        ValueError: `draw` is negative.
    """
    if draw < 0:
        raise ValueError(f"draw is {draw}; it must be 0 or more")
    batches = []
    for first in range(0, len(images), batch_size):
        part = np.require(images[first : first + batch_size], requirements="W")  # as torch wants it
        noise = _generator(seed, _EVALUATION, first, draw=draw).random(part.shape, dtype=np.float32)
        batches.append((torch.from_numpy(part), torch.from_numpy(noise)))
    return batches


def _generator(seed: int, use: int, index: int, *, draw: int = 0, first: int = 0) -> np.random.Generator:
    """A stream of its own for each (seed, use, index, draw): Philox is keyed with the first two, counts from the rest.

    `first` is how many counts of the stream are passed over.
    """
    return np.random.Generator(np.random.Philox(key=[seed, use], counter=[first, 0, draw, index]))

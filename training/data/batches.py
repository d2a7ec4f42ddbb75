"""Batches as a pure function of seed and step.

The images and the dequantization noise of training step t depend on (seed, t) and the place in the batch, and on
nothing that ran before. So a position in the data is one number, a resumed run sees what an undisturbed one sees,
and no generator's state needs saving.

Shapes: B images in a batch, H W C.
"""

from __future__ import annotations

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

Batch = tuple[Tensor, Tensor]
"""Images, uint8 [B, H, W, C], and dequantization noise in [0, 1), float32 [B, H, W, C]."""


class StepLoader(DataLoader[Batch]):
    """The batches of steps `start` to `steps` - 1.

    Its length is the full number of steps even when it starts later: Lightning takes it for the length of the
    epoch that it resumes in the middle of.

    Args:
        images: uint8 [N, H, W, C].
        batch_size: B.
        steps: of the whole run.
        seed: of order and noise.
        start: the first step that is still to do.
    """

    def __init__(self, images: UInt8Array, *, batch_size: int, steps: int, seed: int, start: int = 0) -> None:
        dataset = _StepDataset(images, batch_size, seed)
        super().__init__(dataset, batch_size=None, sampler=_Steps(start, steps))

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


class _StepDataset(Dataset[Batch]):
    """Item t is the whole batch of step t."""

    def __init__(self, images: UInt8Array, batch_size: int, seed: int) -> None:
        self._images, self._batch_size, self._seed = images, batch_size, seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def __getitem__(self, step: int) -> Batch:
        n = len(self._images)
        places = step * self._batch_size + np.arange(self._batch_size)
        epochs = places // n
        indices = np.empty_like(places)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            indices[here] = self._order(int(epoch))[places[here] % n]
        images = self._images[indices]
        noise = _generator(self._seed, _NOISE, step).random(images.shape, dtype=np.float32)
        return torch.from_numpy(images), torch.from_numpy(noise)

    def _shuffled(self, epoch: int) -> np.ndarray:
        return _generator(self._seed, _ORDER, epoch).permutation(len(self._images))


def evaluation_batches(images: UInt8Array, batch_size: int, seed: int = 0) -> list[Batch]:
    """All images in order, each with noise that depends on seed and batch alone: comparable between runs."""
    batches = []
    for first in range(0, len(images), batch_size):
        part = images[first : first + batch_size]
        noise = _generator(seed, _EVALUATION, first).random(part.shape, dtype=np.float32)
        batches.append((torch.from_numpy(part), torch.from_numpy(noise)))
    return batches


def _generator(seed: int, use: int, index: int) -> np.random.Generator:
    """A stream of its own for each (seed, use, index): Philox is keyed with the first, counts from the rest."""
    return np.random.Generator(np.random.Philox(key=[seed, use], counter=[0, 0, 0, index]))

"""Prepares images in threads: decoding and resizing release the GIL."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from glowserve.cores import cores
from glowserve.images import InvalidImageError, UInt8Array, prepare
from glowserve_training.config import DataConfig
from glowserve_training.data.source_images import SourceImages


def prepare_in_parallel(
    wanted: Iterable[tuple[SourceImages, int]], config: DataConfig, pool: ThreadPoolExecutor
) -> Iterator[UInt8Array | InvalidImageError]:
    """Yields images in order, each uint8 [H, W, C], or why they cannot be read; at most a few wait to be yielded.

    Args:
        wanted: images, and the index of one of them.
        config: their shape and preparation.
        pool: the threads.

    Raises:
        DataError: a file cannot be read now.
    """

    def prepare_one(images: SourceImages, index: int) -> UInt8Array | InvalidImageError:
        try:
            return prepare(images[index], *config.image_shape, config.preparation)
        except InvalidImageError as error:
            return error

    most_waiting = 4 * cores()
    waiting: deque[Future[UInt8Array | InvalidImageError]] = deque()
    for images, index in wanted:
        waiting.append(pool.submit(prepare_one, images, index))
        if len(waiting) > most_waiting:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()

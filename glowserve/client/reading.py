"""The images of one `iter_scores`: reads them, and knows each by its name until it has a score or an error."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import Any

import grpc
import numpy as np

from glowserve import messages
from glowserve.client.errors import RequestError
from glowserve.client.inputs import ImageLike, Portion, Readable, join, read_image, several
from glowserve.client.requests import ScoreArguments
from glowserve.results import ImageError, ScoredImages
from glowserve.v1 import glow_service_pb2 as pb

# Errors are passed on once there are so many, also if there is no score between them.
_MOST_ERRORS = 64


class Reading:
    """Reads images, one after the other, and pairs names with scores.

    Args:
        images: see `Client.iter_scores`.
        arguments: the others of the call.

    Raises:
        InvalidImageError, TypeError: `images` is neither an image nor an iterable.
    """

    def __init__(self, images: Iterable[ImageLike] | ImageLike, arguments: ScoreArguments) -> None:
        self._images = enumerate(several(images))
        self._arguments = arguments
        self._waiting: deque[tuple[int, str]] = deque()
        self._errors: list[ImageError] = []
        self._sent: deque[int] = deque()
        self._last = messages.scores_of([pb.ScoreResponse(scores=[pb.ImageScore()])])
        self.ended = False
        """Whether all images have been read."""

    def portions(self) -> Iterator[Portion]:
        """Portions of the images that can be read: all that are left, or those up to many that cannot be read."""
        return join(self._readable())

    def open(self) -> None:
        """A stream begins, and with it the count of what it was sent."""
        self._sent.clear()

    def send(self, portion: Portion) -> Portion:
        """Takes note of a portion that a stream is sent; returns it."""
        self._sent.append(len(portion))
        return portion

    def scored(self, response: pb.ScoreResponse) -> ScoredImages:
        """The scores of the next response, with the names, and with the errors since the last one.

        Raises:
            RequestError: the response has more or fewer scores than its request had images, or lacks some that were
                asked for.
        """
        n = self._sent.popleft()
        if len(response.scores) != n:
            raise RequestError(
                grpc.StatusCode.INTERNAL,
                f"the service answered {n} images with {len(response.scores)} scores",
            )
        self._last = self._arguments.received([response])
        return self._result([self._waiting.popleft() for _ in range(n)])

    def unscored(self) -> Iterator[ScoredImages]:
        """The errors that no response followed, if there are any, with no scores."""
        if self._errors:
            yield self._result([])

    def refuse(self, position: int, reason: str) -> None:
        """The service refused the image at a position among those without a response."""
        index, name = self._waiting[position]
        del self._waiting[position]
        self._errors.append(ImageError(index, name, reason))

    def _readable(self) -> Iterator[Readable]:
        for i, image in self._images:
            name = _name(i, image)
            try:
                readable = read_image(i, image)
            except (OSError, ValueError) as error:
                self._errors.append(ImageError(i, name, _reason(error, name, i)))
                if len(self._errors) >= _MOST_ERRORS:
                    return
            else:
                self._waiting.append((i, name))
                yield readable
        self.ended = True

    def _result(self, images: list[tuple[int, str]]) -> ScoredImages:
        """The scores of the last response under the names of its images, or without images none of them."""
        errors, self._errors = sorted(self._errors, key=lambda error: error.index), []
        values = {each.name: getattr(self._last, each.name) for each in fields(self._last)}
        columns: dict[str, Any] = {
            name: value[: len(images)] if isinstance(value, np.ndarray) else value
            for name, value in values.items()
        }
        return ScoredImages(
            **columns,
            indices=tuple(i for i, _ in images),
            names=tuple(name for _, name in images),
            errors=tuple(errors),
        )


def _name(i: int, image: object) -> str:
    """The path of a file, also of an open one; images[I] for others."""
    path = getattr(image, "name", None) if hasattr(image, "read") else image
    return os.fspath(path) if isinstance(path, str | os.PathLike) else f"images[{i}]"


def _reason(error: OSError | ValueError, name: str, i: int) -> str:
    """Why an image cannot be read, without its name."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return text.removeprefix(f"{name}: ").removeprefix(f"images[{i}]: ")

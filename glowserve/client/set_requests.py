"""The requests of one `score_set`: reads images as they are sent, and keeps some to send them again.

A refusal ends the whole call, and its images are read only once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from glowserve.client import requests
from glowserve.client.errors import RequestError
from glowserve.client.fitting import Fitting, is_too_large, size_of
from glowserve.client.inputs import ImageLike, Portion, read_portions
from glowserve.v1 import glow_service_pb2 as pb

# Sets up to this size are sent again; of larger ones nothing is kept.
_KEPT_BYTES = 64 * 2**20
# How messages of the service begin, and messages that name an image of a request by its index.
_REQUEST = re.compile(r"^requests\[(\d{1,9})\](?:: |\.|$)")
_IMAGE = re.compile(r"^(images\.encoded\.data\[|images: image )(\d{1,9})")


class SetRequests:
    """Iterates over the requests of one set: each time from the first, as long as they are `repeatable`.

    Args:
        images: see `Client.score_set`.
        model: the model's name.
        version: the model's version.
        fitting: what the service takes.

    Raises:
        InvalidImageError, TypeError, ValueError: `images` is neither an image nor an iterable, or the model or version
            is none.
    """

    def __init__(
        self, images: Iterable[ImageLike] | ImageLike, model: str, version: int, fitting: Fitting
    ) -> None:
        self._unread = read_portions(images)
        self._spec = requests.spec(model, version)
        self._fitting = fitting
        self._kept: list[Portion] | None = []
        self._kept_bytes = 0
        self._sent: list[int] = []
        """How many images each request has that was sent since the last beginning."""

    @property
    def repeatable(self) -> bool:
        """Whether everything that was read is kept."""
        return self._kept is not None

    def __iter__(self) -> Iterator[pb.ScoreSetRequest]:
        self._sent.clear()
        for portion in tuple(self._kept or ()):
            yield self._request(portion)
        for unread in self._unread:
            portions = list(self._fitting.split(unread))
            self._keep(portions)
            for portion in portions:
                yield self._request(portion)

    def fit(self, refusal: RequestError) -> None:
        """Splits the requests so that the service takes them.

        Raises:
            RequestError: the refusal, if that would not help. An index in its message counts the images of the set.
        """
        kept = self._kept or []
        refused = [max(kept, key=size_of)] if kept and is_too_large(refusal) else kept
        split = [self._fitting.smaller(portion, refusal) for portion in refused]  # each may lower a limit
        if not any(split):
            raise self._counted(refusal) from None
        self._kept = [part for portion in kept for part in self._fitting.split(portion)]

    def _keep(self, portions: list[Portion]) -> None:
        if self._kept is None:
            return
        self._kept += portions
        self._kept_bytes += sum(map(size_of, portions))
        if self._kept_bytes > _KEPT_BYTES:
            self._kept = None

    def _request(self, portion: Portion) -> pb.ScoreSetRequest:
        self._sent.append(len(portion))
        return requests.set_request(portion, self._spec)

    def _counted(self, refusal: RequestError) -> RequestError:
        found = _REQUEST.match(refusal.message)
        if found is None:
            return refusal
        before = sum(self._sent[: int(found[1])])
        message = _IMAGE.sub(
            lambda image: f"{image[1]}{before + int(image[2])}", refusal.message[found.end() :]
        )
        counted = refusal.with_message(message)
        counted.field = _REQUEST.sub("", refusal.field)
        return counted

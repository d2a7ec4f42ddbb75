"""The frames between a front-end and the engine process. Numbers are packed, the rest is JSON or protobuf.

A request has a number that its front-end gives it, and exactly one of DONE and FAILED ends it, also if it is cancelled.
"""

from __future__ import annotations

import json
import math
import struct
import traceback
from collections.abc import Sequence
from enum import IntEnum, auto
from typing import Any, NamedTuple

import numpy as np

from glowserve.images import UInt8Array
from glowserve.runtime import errors as runtime_errors
from glowserve.runtime.errors import GlowserveError
from glowserve.runtime.repository import Bundle
from glowserve.scores import Likelihoods
from glowserve_service import errors as service_errors
from glowserve_service.scheduling.engine_threads import Array
from glowserve_service.scheduling.submission import EXECUTION, QUEUE


class Kind(IntEnum):
    """The kinds of frames."""

    # From a front-end.
    STARTED = auto()
    """It listens."""
    NOT_STARTED = auto()
    """An error, why it does not."""
    RUN = auto()
    """RUN_FIELDS: run rows."""
    CANCEL = auto()
    """NUMBER: of a request whose caller has left."""
    CONTROL = auto()
    """NUMBER, a byte for the place of the request's type in `control.REQUESTS`, the request."""
    OPEN = auto()
    """TWO_NUMBERS: a request, and the model whose explainer is opened."""
    RELEASED = auto()
    """NUMBER: of a model that the front-end does not use any more."""
    SCORED = auto()
    """TWO_NUMBERS: a model and how many images; their bits/dim and, if there are any, p-values, float64."""
    COUNTED = auto()
    """What has been counted: see `observability.deltas`."""
    GAUGES = auto()
    """NUMBER of the SYNC that it answers, and JSON, by name."""
    APPLIED = auto()
    """A command was carried out; they are in the order in which they came."""

    # From the engine process.
    DONE = auto()
    """NUMBER of a request, and its result: STAGE_TIMEs or a message."""
    FAILED = auto()
    """NUMBER of a request, and an error."""
    ADMITTED = auto()
    """NUMBER of a request that is in the queue: later work of its call may follow."""
    SYNC = auto()
    """NUMBER: send COUNTED and GAUGES."""

    # Commands from the engine process.
    LISTEN = auto()
    """Take the port; answer UNAVAILABLE until ACCEPT."""
    MODEL = auto()
    """A model that will be served: see `descriptions.py`."""
    SERVED = auto()
    """JSON: the numbers of the models that are served from now on."""
    HEALTH = auto()
    """JSON: whether the service and each model are ready."""
    ACCEPT = auto()
    """Accept calls."""
    REFUSE = auto()
    """Refuse new calls; applied when no more come, or after a limit."""
    STOP = auto()
    """Answer the accepted calls, and end."""


NUMBER = struct.Struct("<I")
TWO_NUMBERS = struct.Struct("<II")
RUN_FIELDS = struct.Struct("<IIIQdBB")
"""Request, model, rows, offset of their block, deadline, place of the direction in `lane.DIRECTIONS`, flags."""
FIRST, LONG, GATED = 1, 2, 4
"""The flags: see `Ticket`."""
STAGE_TIME = struct.Struct("<Bdd")
"""Place of the stage in STAGES, when it began, when it ended."""

STAGES = (QUEUE, EXECUTION)

_ALIGNMENT = 64


class Column(NamedTuple):
    """An array of a block, without its first axis, the rows."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]


class Layout:
    """The arrays that rows of one direction of a model are, and those of their results behind them.

    Args:
        rows: the arrays of the rows.
        results: those of the results.
    """

    def __init__(self, rows: Sequence[Column], results: Sequence[Column]) -> None:
        self._rows, self._columns = len(rows), (*rows, *results)
        self._bytes = [math.prod(shape) * dtype.itemsize for dtype, shape in self._columns]

    def size(self, rows: int) -> int:
        """The bytes of a block for so many rows."""
        return sum(_aligned(rows * each) for each in self._bytes)

    def views(self, block: UInt8Array, rows: int) -> tuple[list[Array], list[Array]]:
        """The arrays of the rows and those of the results in a block, uint8 [size]."""
        found, first = [], 0
        for (dtype, shape), each in zip(self._columns, self._bytes, strict=True):
            found.append(np.ndarray((rows, *shape), dtype, block, first))
            first += _aligned(rows * each)
        return found[: self._rows], found[self._rows :]


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def layouts(bundle: Bundle) -> tuple[Layout, ...]:
    """The layouts of a model, in the order of `lane.DIRECTIONS`."""
    shape, latent = bundle.shape, (bundle.manifest.image.latent_size,)
    levels = (bundle.manifest.flow.levels,)
    byte, single, double = np.dtype(np.uint8), np.dtype(np.float32), np.dtype(np.float64)
    images = Column(byte, shape), Column(single, shape)
    forward: tuple[Column, ...] = (
        Column(single, ()),
        Column(single, latent),
        Column(single, levels),
        Column(single, levels),
    )
    latents: tuple[Column, ...] = (Column(single, latent),)
    if count := len(bundle.classes):
        forward += (Column(single, (count,)),)
        latents += (Column(np.dtype(np.int64), ()),)
    likelihoods = [
        Column(np.dtype(np.bool_) if name == "finite" else double, ()) for name in Likelihoods._fields
    ]
    return (
        Layout(images, (*forward, *likelihoods)),
        Layout(latents, images),
        Layout(images, (Column(single, shape[:2]),)),
    )


class EngineProcessError(Exception):
    """An error in the engine process that is not a GlowserveError; the message is its traceback there."""


_ERRORS: dict[str, type[GlowserveError]] = {
    name: kind
    for module in (runtime_errors, service_errors)
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, GlowserveError)
}


def packed_error(error: BaseException) -> bytes:
    """An error as JSON: its type, its message, its facts; of one that is not a GlowserveError the traceback."""
    if isinstance(error, GlowserveError):
        return json.dumps([type(error).__name__, str(error), vars(error)]).encode()
    return json.dumps(["", "".join(traceback.format_exception(error)), {}]).encode()


def unpacked_error(data: bytes) -> Exception:
    """The error that was packed; EngineProcessError in place of one that is not a GlowserveError."""
    name, message, facts = json.loads(data)
    if not name:
        return EngineProcessError(message)
    kind = _ERRORS[name]
    error = kind.__new__(kind)
    Exception.__init__(error, message)
    vars(error).update(facts)
    return error

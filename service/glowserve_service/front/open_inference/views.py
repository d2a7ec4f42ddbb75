"""The models of the Open Inference Protocol: each of ours is two, NAME that scores and NAME.sample that samples."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

from glowserve.oip import grpc_service_pb2 as pb
from glowserve.runtime import inputs, operations
from glowserve.runtime.asked import read_asked
from glowserve.runtime.draws import Draw
from glowserve.runtime.errors import InvalidRequestError, ModelNotFoundError, NotFiniteError
from glowserve.runtime.inputs import ImageSource
from glowserve.runtime.randomness import DEFAULT_SEED
from glowserve.scores import COLUMNS, TABLE, Needs, Score
from glowserve_service.front.call_runner import CallRunner
from glowserve_service.front.open_inference import tensors
from glowserve_service.front.open_inference.tensors import Inputs, Tensor
from glowserve_service.models.lane import FORWARD, REVERSE
from glowserve_service.models.model import Model, Models
from glowserve_service.scheduling.engine_threads import Array

_SAMPLE = ".sample"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_CLASS = Tensor("class", "INT64", (1,))
"""Of each sample, by number; -1: it is drawn by the seed."""
_FINITE = Tensor("finite", "BOOL", ())
# In an answer to a request that names no outputs: today's clients get what they always got.
_UNNAMED = tuple(name for name, dtype in COLUMNS.items() if dtype is np.float64)

Arrays = Mapping[str, Array]
Infer = Callable[[CallRunner, pb.ModelInferRequest, Inputs], Awaitable[Arrays]]


@dataclass(frozen=True)
class View:
    """One of the protocol's models: one direction of one of ours."""

    name: str
    model: Model
    direction: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    """Those that it can answer."""

    named: tuple[Tensor, ...]
    """Those that a request may name: of some it gets to know what the model lacks for them."""

    unnamed: tuple[Tensor, ...]
    """Those that a request without names gets."""

    infer: Infer
    """From inputs to arrays by the names of `outputs`."""

    @property
    def version(self) -> str:
        """The model's, as the protocol writes it."""
        return str(self.model.version)


class Views:
    """Finds the protocol's models among those that are served.

    Args:
        models: what is served.
    """

    def __init__(self, models: Models) -> None:
        self._models = models

    def __iter__(self) -> Iterator[View]:
        names = self._models.names()
        for model in self._models:
            yield _scoring(model)
            if model.name + _SAMPLE not in names:
                yield _sampling(model)

    def find(self, name: str, version: str) -> View:
        """The model of a request: its name, and its version, empty for the newest.

        Raises:
            InvalidRequestError: the version is no number.
            ModelNotFoundError: there is no such model or version.
        """
        if version and not _VERSION.fullmatch(version):
            raise InvalidRequestError(
                f"the model's version is {version[:128]!r}; it must be a number, or empty for the newest",
                "model_version",
            )
        names = self._models.names()
        base = name if name in names else name.removesuffix(_SAMPLE)
        if base not in names:
            served = ", ".join(view.name for view in self)
            raise ModelNotFoundError(f"the model {name[:128]!r} is not served; served are {served}")
        model = self._models.find(base, int(version or 0))
        return _scoring(model) if base == name else _sampling(model)


def _scoring(model: Model) -> View:
    image = Tensor("image", "UINT8", model.bundle.shape)
    named = _score_tensors(model.manifest.flow.levels, len(model.bundle.classes))
    outputs = tuple(tensor for tensor in named if tensor.name in model.scorer.names)
    unnamed = tuple(tensor for tensor in named if tensor.name in _UNNAMED)
    return View(model.name, model, FORWARD, (image,), outputs, named, unnamed, _score)


@cache
def _score_tensors(levels: int, classes: int) -> tuple[Tensor, ...]:
    # Requests of this protocol have one draw of noise, and a model without classes has no tensor of them.
    lacking = Needs.DRAWS if classes else Needs.DRAWS | Needs.CLASSES
    return tuple(
        _score_tensor(score, levels, classes) for score in TABLE.values() if not score.needs & lacking
    )


def _score_tensor(score: Score, levels: int, classes: int) -> Tensor:
    datatype = "BOOL" if score.dtype is np.bool_ else "FP64"
    row = {"level": (levels,), "class": (classes,), None: ()}[score.by]
    return Tensor(score.name, datatype, row)


def _sampling(model: Model) -> View:
    rows = [Tensor("seed", "UINT64", (1,)), Tensor("temperature", "FP32", (1,))]
    if model.bundle.classes:
        rows.append(_CLASS)
    outputs = Tensor("image", "UINT8", model.bundle.shape), _FINITE
    return View(model.name + _SAMPLE, model, REVERSE, tuple(rows), outputs, outputs, outputs, _sample)


async def _score(runner: CallRunner, request: pb.ModelInferRequest, given: Inputs) -> Arrays:
    """As GlowService.Score."""
    seed = tensors.read_seed(request, DEFAULT_SEED)
    images = ImageSource(given.rows, given.size, lambda: given.read()[0])
    named = [output.name for output in request.outputs]
    rate = tensors.read_false_alarm_rate(request)
    asked = read_asked(named, rate, 1, runner.bundle, runner.scorer, names_field="outputs")
    scores = await operations.score(runner, images, seed, asked)
    runner.count_not_finite(len(scores) - int(np.count_nonzero(scores.finite)))
    return scores.columns()


async def _sample(runner: CallRunner, request: pb.ModelInferRequest, given: Inputs) -> Arrays:
    """The first image of GlowService.Sample for each row.

    Raises:
        NotFiniteError: a row has no image, and the request does not name the output that says so.
    """
    field = f"inputs[{[tensor.name for tensor in request.inputs].index('temperature')}]"
    seeds, temperatures, *classes = (array[:, 0].tolist() for array in given.read())
    for temperature in temperatures:
        inputs.check_temperature(temperature, field)
    numbers = _checked_classes(classes[0], runner) if classes else [None] * len(seeds)
    rows = zip(seeds, temperatures, numbers, strict=True)
    draws = [Draw(seed, 0, temperature, number) for seed, temperature, number in rows]
    drawn = await operations.sample(runner, draws)
    if not_finite := len(draws) - int(np.count_nonzero(drawn.finite)):
        if not any(tensor.name == _FINITE.name for tensor in request.outputs):
            raise NotFiniteError(
                f"input 'temperature': row {int(np.argmin(drawn.finite))} does not decode to a finite image; lower it, "
                f"or request the output {_FINITE.name!r}, which says which rows do",
                not_finite,
            )
        runner.count_not_finite(not_finite)
    return {"image": drawn.images, _FINITE.name: drawn.finite}


def _checked_classes(classes: Sequence[int], runner: CallRunner) -> list[int | None]:
    most = len(runner.bundle.classes) - 1
    for row, number in enumerate(classes):
        if not -1 <= number <= most:
            raise InvalidRequestError(
                f"input 'class': row {row} is {number}; it must lie in 0 to {most}, in the order of the model's "
                "classes, or be -1 for a class that the seed draws",
                "inputs",
            )
    return [None if number < 0 else number for number in classes]

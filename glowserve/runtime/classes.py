"""The classes of a class-conditional model: their names in requests, and what they make of the output of its graphs.

Shapes: N images, K classes, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from glowserve.runtime.engine import Float32Array, Forward, Int64Array
from glowserve.runtime.errors import InvalidRequestError, NotCalibratedError
from glowserve.runtime.repository import Bundle
from glowserve.scores import Scorer

# A message names so many classes.
_NAMED = 50


def class_number(name: str, bundle: Bundle, field: str) -> int:
    """The number of a class in the model's graphs.

    Args:
        name: the class's.
        bundle: the model's.
        field: the field of the request that has the name.

    Raises:
        InvalidRequestError: the model has no such class.
    """
    return _number(name, _numbers(bundle), bundle, field)


def class_numbers(
    names: Sequence[str], images: int, bundle: Bundle, field: str = "classes"
) -> Int64Array | None:
    """The numbers of the classes of images, [N]; None if no class is named.

    Args:
        names: a class for each image, or none at all.
        images: N.
        bundle: the model's.
        field: the field of the request that has the names.

    Raises:
        InvalidRequestError: the model has no such class, or there are more or fewer than images.
    """
    if not names:
        return None
    numbers = _numbers(bundle)
    found = [_number(name, numbers, bundle, f"{field}[{i}]") for i, name in enumerate(names[:images])]
    if len(names) != images:
        raise InvalidRequestError(
            f"{field} has {len(names)} classes, and there are {images} images; give one for each, or none",
            field,
        )
    return np.array(found, np.int64)


def _numbers(bundle: Bundle) -> dict[str, int]:
    return {name: number for number, name in enumerate(bundle.classes)}


def _number(name: str, numbers: Mapping[str, int], bundle: Bundle, field: str) -> int:
    """The number of a class; `numbers` has that of each class of the bundle."""
    if name in numbers:
        return numbers[name]
    model = f"{bundle.manifest.model} version {bundle.manifest.version}"
    if not numbers:
        raise InvalidRequestError(
            f"{field} is {name[:128]!r}, and {model} has no classes: it was not trained with --conditional; leave it "
            "out",
            field,
        )
    listed = ", ".join(map(repr, list(numbers)[:_NAMED])) + (", ..." if len(numbers) > _NAMED else "")
    raise InvalidRequestError(f"{field} is {name[:128]!r}; the classes of {model} are {listed}", field)


def scorer_given_class(bundle: Bundle, scorer: Scorer | None) -> Scorer:
    """The scorer of images whose classes are given.

    Args:
        bundle: the model's.
        scorer: the same; None if the bundle has no calibration of that kind.

    Raises:
        NotCalibratedError: it is None.
    """
    if scorer is None:
        name = bundle.manifest.model
        raise NotCalibratedError(
            f"classes: {name} version {bundle.manifest.version} was calibrated with images without labels, and scores "
            f"given a class compare with images of that class; `glowserve calibrate REPOSITORY/{name} --data DATA` "
            "with labelled images writes a version that has them. The score log_posterior needs no labels"
        )
    return scorer


def log_shares(bundle: Bundle) -> npt.NDArray[np.float64]:
    """Log p(c), [K]."""
    return np.log([each.share for each in bundle.manifest.flow.classes])


def given_classes(forward: Forward, classes: Int64Array, bundle: Bundle) -> Forward:
    """The output of the forward graph given the classes of the images.

    What log p(x | c) is more than log p(x) is added to the top level, where `log_prior` has what is no level's own.

    Args:
        forward: the output.
        classes: by number, [N].
        bundle: the model's.
    """
    assert forward.log_posterior is not None
    rows = np.arange(len(classes))
    more = (forward.log_posterior[rows, classes] - log_shares(bundle)[classes]).astype(np.float32)
    log_prior: Float32Array = forward.log_prior.copy()
    log_prior[:, -1] += more
    return replace(forward, log_likelihood=forward.log_likelihood + more, log_prior=log_prior)

"""Reads which scores a request asks for, and checks that its model can compute them."""

from __future__ import annotations

from collections.abc import Sequence

from glowserve.runtime.errors import InvalidRequestError, NotCalibratedError
from glowserve.runtime.repository import Bundle
from glowserve.scores import MAX_IMPORTANCE_SAMPLES, NOTHING_ELSE, TABLE, Asked, Needs, Scorer
from glowserve.scores.asked import all_asked
from glowserve.scores.conformal import images_for, resolution
from glowserve.v1 import glow_service_pb2 as pb


def asked_of(request: pb.ScoreRequest, bundle: Bundle, scorer: Scorer) -> Asked:
    """What a ScoreRequest asks for.

    Raises:
        InvalidRequestError, NotCalibratedError: see `read_asked`.
    """
    rate = request.false_alarm_rate if request.HasField("false_alarm_rate") else None
    draws = request.importance_samples if request.HasField("importance_samples") else 1
    return read_asked(request.scores, rate, draws, bundle, scorer)


def read_asked(
    names: Sequence[str],
    false_alarm_rate: float | None,
    importance_samples: int,
    bundle: Bundle,
    scorer: Scorer,
    *,
    names_field: str = "scores",
) -> Asked:
    """What a request asks for, checked.

    Args:
        names: of scores.
        false_alarm_rate: of `anomalous`, which it asks for; None for the default.
        importance_samples: draws of noise. With 2 or more, `standard_error` is asked for.
        bundle: the model's.
        scorer: the model's.
        names_field: the field of the request that has the names.

    Raises:
        InvalidRequestError: the message names the field, the value, and what is accepted.
        NotCalibratedError: the bundle lacks the calibration that a score needs.
    """
    if not names and false_alarm_rate is None and importance_samples == 1:
        return NOTHING_ELSE
    for i, name in enumerate(names):
        if name not in TABLE:
            raise InvalidRequestError(
                f"{names_field}[{i}] is {name[:128]!r}; the scores are {', '.join(TABLE)}",
                f"{names_field}[{i}]",
            )
    if not 1 <= importance_samples <= MAX_IMPORTANCE_SAMPLES:
        raise InvalidRequestError(
            f"importance_samples is {importance_samples}; it must lie in 1 to {MAX_IMPORTANCE_SAMPLES}",
            "importance_samples",
        )
    if "standard_error" in names and importance_samples == 1:
        raise InvalidRequestError(
            "importance_samples is 1, and standard_error takes 2 or more", "importance_samples"
        )
    if false_alarm_rate is not None and not 0 < false_alarm_rate < 1:
        raise InvalidRequestError(
            f"false_alarm_rate is {false_alarm_rate:g}; it must lie between 0 and 1", "false_alarm_rate"
        )
    wanted = all_asked(names, false_alarm_rate, importance_samples)
    for i, name in enumerate(names):
        if Needs.CLASSES in TABLE[name].needs and not bundle.classes:
            raise InvalidRequestError(
                f"{names_field}[{i}] is {name!r}, and {bundle.manifest.model} version {bundle.manifest.version} has no "
                "classes: it was not trained with --conditional; leave it out",
                f"{names_field}[{i}]",
            )
    for name in (*names, *sorted(wanted)):  # an error names the first that the caller has named
        require(f"score {name!r}", TABLE[name].needs, bundle, scorer)
    if false_alarm_rate is not None:
        _check_resolution(false_alarm_rate, scorer)
    return Asked(scores=wanted, false_alarm_rate=false_alarm_rate, importance_samples=importance_samples)


def require(what: str, needs: Needs, bundle: Bundle, scorer: Scorer) -> None:
    """Checks that a model can compute something.

    Args:
        what: the thing, for the message.
        needs: what it is computed from.
        bundle: the model's.
        scorer: the model's.

    Raises:
        NotCalibratedError: the bundle lacks the calibration that it needs.
    """
    if scorer.computes(needs):
        return
    model = f"{bundle.manifest.model} version {bundle.manifest.version}"
    if Needs.CALIBRATION in needs and scorer.calibration is None:
        why = "has no calibration"
    else:
        why = "was exported with another version of the WebP library, whose files have other sizes than here"
    raise NotCalibratedError(
        f"{what}: {model} {why}; `glowserve calibrate REPOSITORY/{bundle.manifest.model} --data DATA` "
        "writes a version that is calibrated here"
    )


def _check_resolution(rate: float, scorer: Scorer) -> None:
    assert scorer.calibration is not None
    images = len(scorer.calibration.images)
    if rate < resolution(images):
        raise InvalidRequestError(
            f"false_alarm_rate is {rate:g}, which takes {images_for(rate)} calibration images; this model has "
            f"{images}, which permit 1/{images + 1} or more; `glowserve calibrate` with more images permits less",
            "false_alarm_rate",
        )

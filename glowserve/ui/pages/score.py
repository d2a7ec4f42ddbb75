"""Scores pictures: each beside the calibration images, with a verdict and a heat map, the oddest first."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from glowserve.client.async_client import AsyncClient
from glowserve.client.errors import RequestError
from glowserve.heat_map import coloured, legend
from glowserve.images import UInt8Array, open_encoded, prepare
from glowserve.results import Explanations, ImageError
from glowserve.scores import Part
from glowserve.ui.errors import FormError
from glowserve.ui.forms import Form, Upload
from glowserve.ui.histogram import Histogram, histogram
from glowserve.ui.models import Model, describe
from glowserve.ui.page import Page, Result
from glowserve.ui.pictures import png_url

# Of more than twice as many pictures, so many of the oddest and of the most usual are shown.
_SHOWN = 8
# So many parts of each are named.
_NAMED = 3
# Pixels of the width of the heat maps' legend.
_LEGEND = 320


@dataclass(frozen=True)
class _Scored:
    """A picture with its scores by name."""

    upload: Upload
    scores: dict[str, Any]

    @property
    def oddness(self) -> tuple[float, float]:
        """Ascends from the oddest: p-values, of which small ones have many equals, then bits/dim."""
        return self.scores.get("anomaly_p_value", 0.0), -self.scores["bits_per_dim"]


@dataclass(frozen=True)
class _Shown:
    """A picture as the page shows it."""

    name: str
    scores: dict[str, Any]
    histogram: Histogram | None
    """None of a model without calibration images."""
    picture: str
    """Its image, as a data URL."""
    heat_map: str
    """That of its heat map; "" without one."""
    parts: Sequence[Part]
    """The parts that are farthest from usual; none without a heat map."""


async def _answer(client: AsyncClient, name: str, form: Form) -> Result:
    if not form.pictures:
        raise FormError("there are no pictures: choose some, or drop them on the page")
    model = await describe(client, name)
    scored, errors, rate = await _score(client, model, form.pictures)
    scored.sort(key=lambda each: each.oddness)
    oddest, usual = (scored[:_SHOWN], scored[-_SHOWN:]) if len(scored) > 2 * _SHOWN else (scored, [])
    shown, note = await _show(client, model, [*oddest, *usual])
    return {
        "model": model,
        "scored": scored,
        "oddest": shown[: len(oddest)],
        "usual": shown[len(oddest) :],
        "errors": errors,
        "anomalous": sum(each.scores.get("anomalous", False) for each in scored),
        "rate": rate,
        "note": note,
        "legend": png_url(legend(_LEGEND)),
    }


async def _score(
    client: AsyncClient, model: Model, uploads: Sequence[Upload]
) -> tuple[list[_Scored], list[ImageError], float | None]:
    """The scores of the pictures that can be read, the errors of the others, and the rate of false alarms."""
    scored: list[_Scored] = []
    errors: list[ImageError] = []
    rate = None
    names = ["anomalous"] if model.has_p_values else []
    parts = client.iter_scores(iter(uploads), scores=names, model=model.name, version=model.version)
    async for part in parts:
        scored += [_Scored(uploads[i], row) for i, row in zip(part.indices, part.rows(), strict=True)]
        errors += part.errors
        rate = part.false_alarm_rate or rate
    return scored, errors, rate


async def _show(client: AsyncClient, model: Model, scored: Sequence[_Scored]) -> tuple[list[_Shown], str]:
    """The pictures as the page shows them, and why they have no heat maps, or ""."""
    if not scored:
        return [], ""
    explained, note = None, ""
    try:
        files = [each.upload.data for each in scored]
        explained = await client.explain(files, model=model.name, version=model.version)
    except RequestError as error:
        note = error.message
    return await asyncio.to_thread(_draw, model, scored, explained), note


def _draw(model: Model, scored: Sequence[_Scored], explained: Explanations | None) -> list[_Shown]:
    shown = []
    for i, each in enumerate(scored):
        image = _image(model, each.upload.data)
        bits = each.scores["bits_per_dim"]
        shown.append(
            _Shown(
                each.upload.name,
                each.scores,
                histogram(model.calibration, bits) if model.calibration.size else None,
                png_url(image),
                png_url(coloured(image, explained.deviations[i])) if explained else "",
                explained.parts[i][:_NAMED] if explained else (),
            )
        )
    return shown


def _image(model: Model, data: bytes) -> UInt8Array:
    """The image that the service made of a picture that it has accepted."""
    with open_encoded(data) as picture:
        return prepare(picture, *model.shape, model.preparation, max_pixels=sys.maxsize)


SCORE = Page(
    path="score",
    title="Score",
    heading="Do these pictures belong?",
    answer=_answer,
    uploads=True,
)
"""The page of scores."""

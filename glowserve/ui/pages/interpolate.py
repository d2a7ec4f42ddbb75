"""Walks from one picture to another through the latents of a model."""

from __future__ import annotations

from glowserve.client.async_client import AsyncClient
from glowserve.ui.forms import Form
from glowserve.ui.page import Page, Result
from glowserve.ui.pictures import png_url
from glowserve.ui.sliders import Slider

_STEPS = Slider(
    name="steps",
    label="Images",
    low=2,
    high=32,
    default=8,
    hint="How many images the walk has, both ends included.",
)


async def _answer(client: AsyncClient, model: str, form: Form) -> Result:
    one, other = form.picture("first"), form.picture("last")
    steps = int(_STEPS.read(form.fields.get(_STEPS.name, "")))
    images = await client.interpolate(one.data, other.data, steps=steps, model=model)
    return {"one": one.name, "other": other.name, "images": [png_url(image) for image in images]}


INTERPOLATE = Page(
    path="interpolate",
    title="Interpolate",
    heading="Walk between two pictures",
    answer=_answer,
    uploads=True,
    sliders=(_STEPS,),
)
"""The page of walks."""

"""Moves a picture along attributes: from as far without them to as far with them."""

from __future__ import annotations

import numpy as np

from glowserve.client.async_client import AsyncClient
from glowserve.ui.forms import Form
from glowserve.ui.page import Page, Result
from glowserve.ui.pictures import png_url
from glowserve.ui.sliders import Slider

# An odd number: the picture itself is in the middle.
_IMAGES = 9

_REACH = Slider(
    name="reach",
    label="Strength",
    low=0.5,
    high=4,
    step=0.5,
    default=2,
    hint="How far to go to either side: 1 is the whole difference between images with the attribute and without.",
)


async def _answer(client: AsyncClient, model: str, form: Form) -> Result:
    picture, names = form.picture("original"), form.fields.getall("attribute", [])
    reach = _REACH.read(form.fields.get(_REACH.name, ""))
    strengths = np.linspace(-reach, reach, _IMAGES)
    # The service refuses no names, too many and unknown ones, and lists those that there are.
    images = await client.manipulate(picture.data, names, strengths, model=model)
    return {
        "picture": picture.name,
        "names": names,
        "images": [png_url(image) for image in images],
        "strengths": [f"{strength:g}" for strength in strengths],
    }


ATTRIBUTES = Page(
    path="attributes",
    title="Attributes",
    heading="Move a picture along an attribute",
    answer=_answer,
    uploads=True,
    sliders=(_REACH,),
)
"""The page of attributes."""

"""Draws images from a model, at a temperature, from a seed, and of a class if the model has classes."""

from __future__ import annotations

from glowserve.client.async_client import AsyncClient
from glowserve.grid import grid
from glowserve.ui.forms import Form
from glowserve.ui.page import Page, Result
from glowserve.ui.pictures import png_url
from glowserve.ui.sliders import Slider

# Pixels, about, of the side of a grid.
_SIDE = 512

_TEMPERATURE = Slider(
    name="temperature",
    label="Temperature",
    low=0,
    high=1.5,
    step=0.05,
    default=0.7,
    hint="The factor of the latents: 1 is the model's distribution; lower values give more usual images.",
)
_SEED = Slider(
    name="seed",
    label="Seed",
    low=0,
    high=999,
    default=0,
    hint="The same seed gives the same images.",
)
_N = Slider(name="n", label="Images", low=1, high=64, default=16, hint="How many are drawn.")


async def _answer(client: AsyncClient, model: str, form: Form) -> Result:
    temperature, seed, n = (
        slider.read(form.fields.get(slider.name, "")) for slider in (_TEMPERATURE, _SEED, _N)
    )
    # The service refuses unknown ones, and lists those that there are.
    class_name = form.fields.get(f"class-{model}", "")
    samples = await client.sample(
        int(n), temperature=temperature, seed=int(seed), class_name=class_name, model=model
    )
    drawn = None
    if len(samples):
        scale = max(1, _SIDE // (samples.images.shape[2] * round(len(samples) ** 0.5 + 0.5)))
        drawn = png_url(grid(samples.images, scale=scale))
    return {"samples": samples, "grid": drawn, "temperature": temperature, "class_name": class_name}


SAMPLE = Page(
    path="sample",
    title="Sample",
    heading="Draw new images",
    answer=_answer,
    sliders=(_TEMPERATURE, _SEED, _N),
)
"""The page of samples."""

"""A page: a form, and the result of what a visitor filled in.

A page is the same with its result, without it, and with the sentence that says why there is none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from glowserve.client.async_client import AsyncClient
from glowserve.ui.forms import Form
from glowserve.ui.sliders import Slider

Result = Mapping[str, Any]
"""The values that the template shows as the result."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """One page."""

    path: str
    """Its path on the server; its template is templates/PATH.html."""

    title: str
    """Its name in the navigation."""

    heading: str
    """Its first line."""

    answer: Callable[[AsyncClient, str, Form], Awaitable[Result]]
    """Computes the result of a form with the service; the string is the name of the model.

    Raises:
        FormError, InvalidImageError: the visitor filled in what cannot be used.
        RequestError: the service refused or failed.
    """

    uploads: bool = False
    """Whether the form has pictures, and is sent with POST. Else its fields are the query of a GET."""

    sliders: tuple[Slider, ...] = ()
    """The sliders of the form."""

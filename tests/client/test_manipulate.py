"""`manipulate` of the clients: images, latents, names and strengths in every form."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array, encode_png
from tests.client.conftest import CLIENTS
from tests.servers import RunServer
from tests.service.stubs import address


@pytest.fixture(scope="module", params=["server", "embedded", "asyncio"])
def attributed(
    request: pytest.FixtureRequest, run_server: RunServer, attributed_repository: Path
) -> Iterator[glowserve.Client]:
    """The model with attributes behind each client."""
    if request.param == "embedded":
        yield glowserve.open(attributed_repository / "digits")
        return
    with (
        run_server(repository=attributed_repository) as server,
        CLIENTS[request.param](address(server)) as client,
    ):
        yield client


def test_an_image_moves_along_an_attribute(attributed: glowserve.Client, digits: UInt8Array) -> None:
    images = attributed.manipulate(digits[0], "bright", np.linspace(-1, 1, 5))
    assert (images.shape, images.dtype) == ((5, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(images[2], digits[0])
    assert images[0].sum() < images[4].sum()


def test_every_form_of_an_image_gives_the_same(attributed: glowserve.Client, digits: UInt8Array) -> None:
    expected = attributed.manipulate(digits[0], ["bright", "top"], 1)
    latents = attributed.encode(digits[:1]).latents
    for image in (encode_png(digits[0]), digits[0, :, :, 0], latents, latents[0], latents.astype(np.float64)):
        found = attributed.manipulate(image, (name for name in ("top", "bright")), [1], model="digits")
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda c: c.manipulate(np.zeros((2, 64)), "top", 1), ValueError, r"the latent has shape \[2, 64\]"),
        (lambda c: c.manipulate(np.zeros(0), "top", 1), ValueError, r"the latent has shape \[0\]"),
        (
            lambda c: c.manipulate(np.zeros(63), "top", 1),
            glowserve.RequestError,
            r"latents.shape is \[1, 63\]",
        ),
        (lambda c: c.manipulate(np.zeros(64), 3, 1), TypeError, "'int' object is not iterable"),
        (lambda c: c.manipulate(np.zeros(64), [3], 1), TypeError, "attributes has 3; pass names"),
        (lambda c: c.manipulate(np.zeros(64), "top", "1"), TypeError, "strengths has '1'; pass numbers"),
        (lambda c: c.manipulate(np.zeros(64), "top", None), TypeError, "strengths has None; pass numbers"),
        (lambda c: c.manipulate(np.zeros(64), "top", []), glowserve.RequestError, "strengths has 0 values"),
        (lambda c: c.manipulate(np.zeros(64), "no", 1), glowserve.RequestError, "the attributes are bright"),
        (lambda c: c.manipulate("nowhere.png", "top", 1), FileNotFoundError, "nowhere.png"),
    ],
)
def test_wrong_arguments_are_named(
    attributed: glowserve.Client, call: Callable[[Any], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call(attributed)

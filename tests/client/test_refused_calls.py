"""The way of a refused call through every client: to a RequestError, or to an error before anything is sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

import glowserve
from glowserve.images import UInt8Array, encode_png

BLANK = np.zeros((8, 8), np.uint8)

INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST")
NOT_FINITE = (grpc.StatusCode.FAILED_PRECONDITION, "NOT_FINITE")
NOT_FOUND = (grpc.StatusCode.NOT_FOUND, "MODEL_NOT_FOUND")

REFUSED: list[tuple[Callable[[Any], Any], tuple[grpc.StatusCode, str], str]] = [
    (lambda c: c.score(b"no picture"), INVALID, "data[0]: 10 bytes are not"),
    (lambda c: c.score(np.zeros((9, 9), np.uint8)), INVALID, "[1, 9, 9, 1]"),
    (lambda c: c.encode(np.zeros((8, 8, 3), np.uint8)), INVALID, "[1, 8, 8, 3]"),
    (lambda c: c.sample(0), INVALID, "n is 0"),
    (lambda c: c.sample(100_001), INVALID, "n is 100001"),
    (lambda c: list(c.iter_samples(0)), INVALID, "n is 0"),
    (lambda c: c.sample(1, temperature=-1), INVALID, "temperature is -1.0"),
    (lambda c: c.sample(1, temperature=float("nan")), INVALID, "temperature is nan"),
    (lambda c: c.sample(1, temperature=1e39), INVALID, "temperature is inf"),
    (
        lambda c: c.sample(1, temperature=3e38, seed=0),
        NOT_FINITE,
        "temperature is 3e+38: not one sample of 1 is finite",
    ),
    (lambda c: c.decode(np.zeros((2, 63))), INVALID, "latents.shape is [2, 63]"),
    (lambda c: c.decode(np.full((2, 64), np.nan)), INVALID, "row 0 is not finite"),
    (lambda c: c.decode(np.full((2, 64), 1e300)), INVALID, "row 0 is not finite"),
    (lambda c: c.decode(np.full((2, 64), 1e38)), NOT_FINITE, "row 0 does not decode"),
    (lambda c: c.interpolate(BLANK, BLANK, steps=1), INVALID, "steps is 1"),
    (lambda c: c.interpolate(BLANK, BLANK, steps=257), INVALID, "steps is 257"),
    (lambda c: c.interpolate(BLANK, b"no"), INVALID, "data[1]: 2 bytes"),
    (lambda c: c.score(BLANK, model="nobody"), NOT_FOUND, "'nobody'"),
    (lambda c: c.score(BLANK, model="né-模型-🎨"), NOT_FOUND, "né-模型-🎨"),
    (lambda c: list(c.iter_scores(BLANK, model="nobody")), NOT_FOUND, "'nobody'"),
    (lambda c: c.sample(1, model="nobody"), NOT_FOUND, "'nobody'"),
    (lambda c: c.encode(BLANK, version=2), NOT_FOUND, "version 2"),
    (lambda c: c.decode(np.zeros((1, 64)), version=2), NOT_FOUND, "version 2"),
    (lambda c: c.interpolate(BLANK, BLANK, version=2), NOT_FOUND, "version 2"),
    (lambda c: c.manifest(model="nobody"), NOT_FOUND, "'nobody'"),
]


@pytest.mark.parametrize(("call", "status", "words"), REFUSED)
def test_a_refused_call_raises_its_status(
    answering: glowserve.Client, call: Callable[[Any], Any], status: tuple[grpc.StatusCode, str], words: str
) -> None:
    with pytest.raises(glowserve.RequestError) as caught:
        call(answering)
    error = caught.value
    assert (error.code, error.reason) == status
    assert words in error.message
    assert not error.message.startswith("requests")
    assert str(error) == f"{status[0].name}: {error.message}"
    assert error.__cause__ is None


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda c: c.score([]), ValueError, "no images"),
        (lambda c: c.encode(()), ValueError, "no images"),
        (lambda c: c.score(np.zeros((0, 8, 8, 1), np.uint8)), ValueError, "no images"),
        (lambda c: c.decode(np.zeros((0, 64))), ValueError, r"latents have shape \[0, 64\]"),
        (lambda c: c.decode(np.zeros(64)), ValueError, r"latents have shape \[64\]"),
        (lambda c: c.score(BLANK, seed=-1), ValueError, "seed is -1"),
        (lambda c: c.score(BLANK, seed=2**64), ValueError, "seed is 18446744073709551616"),
        (lambda c: list(c.iter_scores(BLANK, seed=-1)), ValueError, "seed is -1"),
        (lambda c: c.sample(1, seed=-1), ValueError, "seed is -1"),
        (lambda c: list(c.iter_samples(1, seed=-1)), ValueError, "seed is -1"),
        (lambda c: c.sample(-1), ValueError, r"n is -1; it must lie in 0 to 2\^32 - 1"),
        (lambda c: c.sample(2**32), ValueError, "n is 4294967296"),
        (lambda c: c.sample(2.5), TypeError, r"n is 2\.5; pass an integer"),
        (lambda c: c.sample(1, temperature="hot"), TypeError, "temperature is 'hot'; pass a number"),
        (lambda c: c.interpolate(BLANK, BLANK, steps=-1), ValueError, "steps is -1"),
        (lambda c: c.interpolate(BLANK, BLANK, steps="8"), TypeError, "steps is '8'; pass an integer"),
        (lambda c: c.score(BLANK, seed="3"), TypeError, "seed is '3'; pass an integer"),
        (lambda c: c.score(BLANK, version=-1), ValueError, r"version is -1; it must lie in 0 to 2\^64 - 1"),
        (lambda c: c.score(BLANK, version="1"), TypeError, "version is '1'; pass an integer"),
        (lambda c: c.score(BLANK, model=7), TypeError, "model is 7; pass its name"),
        (lambda c: c.manifest(model=None), TypeError, "model is None; pass its name"),
        (lambda c: c.decode([["a"] * 64]), TypeError, "latents are of type <U1; pass numbers"),
        (lambda c: c.decode(np.zeros((1, 64), complex)), TypeError, "latents are of type complex128"),
        (lambda c: c.decode([[0.0] * 64, [0.0]]), ValueError, "rows of several lengths"),
        (lambda c: c.score(np.zeros((8, 8))), glowserve.InvalidImageError, "float64"),
        (lambda c: c.score(np.zeros((8, 8, 5), np.uint8)), glowserve.InvalidImageError, r"\[8, 8, 5\]"),
        (lambda c: c.score([np.zeros((2, 8, 8, 1), np.uint8)]), glowserve.InvalidImageError, "in a list"),
        (lambda c: c.score(7), TypeError, "int is no image"),
        (lambda c: c.score([b"", None]), TypeError, "NoneType is no image"),
        (lambda c: list(c.iter_scores(7)), TypeError, "int is no image"),
        (lambda c: list(c.iter_scores(iter([None]))), TypeError, "NoneType is no image"),
        (lambda c: c.interpolate(BLANK, [BLANK]), TypeError, "list is no image"),
        (lambda c: c.score("nowhere.png"), FileNotFoundError, "nowhere.png"),
        (lambda c: c.interpolate(BLANK, "nowhere.png"), FileNotFoundError, "nowhere.png"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_sent(
    answering: glowserve.Client, call: Callable[[Any], Any], kind: type[Exception], words: str
) -> None:
    with pytest.raises(kind, match=words):
        call(answering)


def test_a_file_that_is_no_picture_is_named(
    answering: glowserve.Client, tmp_path: Path, digits: UInt8Array
) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    good.write_bytes(encode_png(digits[0]))
    bad.write_text("no picture")
    for images in (bad, str(bad), [good, bad]):
        with pytest.raises(glowserve.InvalidImageError, match=f"^{bad}: 10 bytes are not a picture"):
            answering.score(images)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (lambda c: c.score(np.zeros((8, 8, 2), np.uint8)), "images.tensor.shape"),
        (lambda c: c.sample(0), "n"),
        (lambda c: c.score([BLANK, b"no picture"]), "images.encoded.data[1]"),
        (lambda c: c.score(BLANK, model="nobody"), ""),
    ],
)
def test_a_refused_call_names_its_field(
    answering: glowserve.Client, call: Callable[[Any], Any], field: str
) -> None:
    with pytest.raises(glowserve.RequestError) as caught:
        call(answering)
    assert caught.value.field == field

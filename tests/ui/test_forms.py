"""What a stranger sends as a form: bounded, and answered with a sentence."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.ui import forms
from tests.ui.http_requests import ask, part, post

MULTIPART = "multipart/form-data; boundary=limit"


@pytest.fixture
def png(digits: UInt8Array) -> bytes:
    return encode_png(digits[0])


def test_as_many_pictures_as_permitted_are_scored_and_one_more_is_too_many(url: str, png: bytes) -> None:
    pictures = [("pictures", f"{i}.png", png) for i in range(forms.MOST_PICTURES + 1)]
    assert post(url, "/score", pictures[:-1]).status == 200
    refused = post(url, "/score", pictures)
    assert (refused.status, refused.error[:37]) == (413, "These are more than 500 pictures: cho")


def test_pictures_that_are_too_large_together_are_refused_while_they_arrive(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forms, "MOST_BYTES", 2**20)
    read = itertools.count()

    def body() -> Iterator[bytes]:
        yield part(("pictures", "large.png", b"")).removesuffix(b"\r\n")
        for _ in itertools.islice(read, 64):
            yield bytes(2**16)

    refused = ask(url, "/score", "POST", body(), Content_Type=MULTIPART, Transfer_Encoding="chunked")
    assert (refused.status, refused.error[:48]) == (413, "The pictures have more than 1 MiB together: choo")


def test_an_upload_that_does_not_end_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forms, "UPLOAD_SECONDS", 0.3)
    host, _, port = urlsplit(url).netloc.partition(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        head = f"POST /score HTTP/1.1\r\nHost: {host}\r\nContent-Length: 1000\r\nContent-Type: {MULTIPART}\r\n\r\n"
        connection.sendall(head.encode() + part(("pictures", "slow.png", b"")))
        answer = connection.recv(2**16).decode()
    assert answer.startswith("HTTP/1.1 408 ")
    assert "The upload took longer than 0.3 s: choose fewer pictures" in answer


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/plain", b"pictures"),
        ("multipart/form-data", b"--limit--\r\n"),
        (f"multipart/form-data; boundary={'x' * 71}", b"--x--\r\n"),
        (MULTIPART, b"no part at all"),
        (MULTIPART, b"--limit\r\nno header\r\n\r\n--limit--\r\n"),
        (MULTIPART, b"--limit\r\n" + b"X: 1\r\n" * 9999 + b"\r\n\r\n--limit--\r\n"),
        (MULTIPART, part(("pictures", "a.png", b"cut short"))),
        (MULTIPART, b"--limit\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b--\r\n--limit--\r\n"),
        (MULTIPART, b"--limit\r\nContent-Transfer-Encoding: nonsense\r\n\r\nx\r\n--limit--\r\n"),
        (MULTIPART, b"--limit\r\nContent-Length: many\r\n\r\nx\r\n--limit--\r\n"),
        ("application/x-www-form-urlencoded", b"pictures=1"),
    ],
)
def test_bytes_that_are_no_form_are_refused_with_a_sentence(url: str, content_type: str, body: bytes) -> None:
    refused = ask(url, "/score", "POST", body, Content_Type=content_type)
    assert refused.status == 400
    assert refused.error


def test_a_form_has_a_bounded_number_of_fields_of_bounded_size(url: str) -> None:
    many = post(url, "/score", [(f"field-{i}", None, b"x") for i in range(forms._MOST_FIELDS + 1)])
    assert (many.status, many.error) == (400, "The form has more than 272 fields: send it from the page")
    long = post(url, "/score", [("model", None, bytes(1025))])
    assert (long.status, long.error) == (
        413,
        "The field 'model' has more than 1024 bytes: send it from the page",
    )


def test_a_form_without_pictures_says_so(url: str) -> None:
    refused = post(url, "/score", [("pictures", "", b"")])  # as browsers send a field without a file
    assert (refused.status, refused.error[:23]) == (400, "There are no pictures: ")


def test_a_walk_needs_two_pictures(url: str, png: bytes) -> None:
    refused = post(url, "/interpolate", [("first", "a.png", png), ("last", "", b"")])
    assert (refused.status, refused.error) == (400, "The last picture is missing: choose one")


def test_a_picture_of_a_walk_that_cannot_be_read_is_an_error(url: str, png: bytes) -> None:
    refused = post(url, "/interpolate", [("first", "a.png", png), ("last", "b.png", b"no picture")])
    assert refused.status == 400
    assert "accepted are PNG, JPEG, WEBP" in refused.error


def test_attributes_that_cannot_be_used_are_errors_with_those_that_can(url: str, png: bytes) -> None:
    picture = ("original", "a.png", png)
    for ticked, error in (([], "attributes is empty"), (["top", "odd"], "attributes[1] is 'odd'")):
        refused = post(
            url, "/attributes", [picture, *(("attribute", None, each.encode()) for each in ticked)]
        )
        assert refused.status == 400
        assert f"{error}; the attributes are bright, top" in refused.error
    missing = post(url, "/attributes", [("attribute", None, b"top")])
    assert (missing.status, missing.error) == (400, "The original picture is missing: choose one")


def test_only_the_name_of_a_file_is_shown(url: str, png: bytes) -> None:
    names = ("C:\\\\Users\\\\me\\\\one.png", "/home/me/two.png", "three\u202egnp.png", "x" * 999)
    answer = post(url, "/score", [("pictures", name, png) for name in names])
    assert answer.status == 200
    assert "Users" not in answer.text
    assert "home" not in answer.text
    assert "three\\u202egnp.png" in answer.text
    assert "799 characters are left out" in answer.text


def test_pictures_of_every_format_and_size_are_scored(url: str, tmp_path: Path, digits: UInt8Array) -> None:
    from PIL import Image

    formats = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "PPM", "TIFF")
    pictures = []
    for name in formats:
        Image.fromarray(digits[0, :, :, 0]).resize((61, 47)).save(tmp_path / name, name)
        pictures.append(("pictures", name, (tmp_path / name).read_bytes()))
    answer = post(url, "/score", pictures)
    assert answer.status == 200
    assert 'class="errors"' not in answer.text
    assert answer.text.count('class="card"') == len(formats)

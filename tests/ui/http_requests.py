"""Requests to the pages without a browser."""

from __future__ import annotations

import http.client
from collections.abc import Iterable
from contextlib import closing
from html import unescape
from re import DOTALL, search
from typing import NamedTuple
from urllib.parse import urlsplit


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: http.client.HTTPMessage
    text: str

    @property
    def error(self) -> str:
        """The sentence that says what was wrong; "" without one."""
        found = search(r'<p class="error"[^>]*>(.*?)</p>', self.text, DOTALL)
        return unescape(found[1]) if found else ""


def ask(
    url: str,
    path: str,
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    *,
    timeout: float = 60,
    **headers: str,
) -> Answer:
    """Sends a request, with `_` for the `-` in the names of headers; a body in pieces is sent in chunks."""
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)) as connection:
        connection.request(method, path, body, named, encode_chunked=not isinstance(body, bytes | None))
        response = connection.getresponse()
        return Answer(response.status, response.headers, response.read().decode())


def post(url: str, path: str, parts: Iterable[tuple[str, str | None, bytes]], **headers: str) -> Answer:
    """Sends a form: the field, the name of the file unless it is text, and the content of each part."""
    body = b"".join(map(part, parts)) + b"--limit--\r\n"
    return ask(url, path, "POST", body, Content_Type="multipart/form-data; boundary=limit", **headers)


def part(of: tuple[str, str | None, bytes]) -> bytes:
    """A part of a form as it is sent."""
    field, file, content = of
    named = "" if file is None else f'; filename="{file}"'
    head = f'--limit\r\nContent-Disposition: form-data; name="{field}"{named}\r\n\r\n'
    return head.encode() + content + b"\r\n"

"""Who may ask for pages, and what a page may load.

A page of another site that is open in the visitor's browser may neither use the service nor read pictures:

- Its name can be made to lead to 127.0.0.1 (DNS rebinding). Such a request has that name as its Host, of which only
  addresses and `localhost` are accepted.
- It can send forms here (CSRF), and ask for addresses as if they were pictures. Browsers say where a request comes
  from: Fetch Metadata (https://www.w3.org/TR/fetch-metadata/), and Origin where that is missing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from urllib.parse import urlsplit

from aiohttp import web
from yarl import URL

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "same-origin",  # without a referrer, forms would have the Origin "null"
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
"""Of every response: nothing is loaded from elsewhere, no site frames the page, and nothing is stored."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuses requests that other sites can make, before their body is read."""
    if not _is_address(request.headers.get("Host", "")):
        return _refusal(
            "This page answers to localhost and to IP addresses alone: open it by one of them.", 421
        )
    if _is_foreign(request):
        return _refusal("Another site made this request: open the page itself.", 403)
    return await handler(request)


async def add_headers(_: web.Request, response: web.StreamResponse) -> None:
    """Adds `HEADERS` to a response."""
    response.headers.update(HEADERS)


def _is_address(host: str) -> bool:
    """Whether the header Host has no name that a DNS server could lead here."""
    try:
        name = URL.build(scheme="http", authority=host).host or ""
        if name.lower() != "localhost":
            ip_address(name)
    except ValueError:
        return False
    return True


def _is_foreign(request: web.Request) -> bool:
    """Whether another site made the request, unless the visitor followed a link to read a page."""
    headers = request.headers
    origin = headers.get("Origin")
    if origin is not None and urlsplit(origin).netloc != headers["Host"]:
        return True
    if headers.get("Sec-Fetch-Site", "none") in ("same-origin", "none"):
        return False
    link = headers.get("Sec-Fetch-Mode") == "navigate" and headers.get("Sec-Fetch-Dest") == "document"
    return request.method != "GET" or not link


def _refusal(text: str, status: int) -> web.Response:
    return web.Response(text=f"{text}\n", status=status)

"""Serves the pages over HTTP, and asks the service for what they show."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from functools import partial
from pathlib import Path

from aiohttp import web
from jinja2 import Environment, PackageLoader, StrictUndefined

from glowserve.client.async_client import AsyncClient
from glowserve.client.errors import RequestError
from glowserve.images import InvalidImageError
from glowserve.results import ModelInfo
from glowserve.ui import errors, forms, models
from glowserve.ui.errors import FormError, ListenError
from glowserve.ui.forms import Form
from glowserve.ui.guard import add_headers, guard
from glowserve.ui.page import Page, Result
from glowserve.ui.pages import PAGES

# Uploads in memory at a time; the next ones wait before they are read.
_UPLOADS = 2


class Pages:
    """The pages of one service.

    Args:
        client: a client of the service.
        target: its HOST:PORT, for sentences.
    """

    def __init__(self, client: AsyncClient, target: str) -> None:
        self._client, self._target = client, target
        self._uploads = asyncio.Semaphore(_UPLOADS)
        self._templates = Environment(
            loader=PackageLoader("glowserve.ui"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def application(self) -> web.Application:
        """The application that a server of aiohttp runs."""
        application = web.Application(middlewares=[guard])
        application.on_response_prepare.append(add_headers)
        application.router.add_get("/", self._arrive)
        application.router.add_static("/static", Path(__file__).parent / "static")
        for page in PAGES:
            application.router.add_get(f"/{page.path}", partial(self._get, page))
            if page.uploads:
                application.router.add_post(f"/{page.path}", partial(self._post, page))
        return application

    async def _arrive(self, request: web.Request) -> web.Response:
        raise web.HTTPFound(f"/{PAGES[0].path}")

    async def _get(self, page: Page, request: web.Request) -> web.Response:
        """A page without a result, or with that of the fields in the query."""
        return await self._respond(page, Form(request.query), bool(request.query) and not page.uploads)

    async def _post(self, page: Page, request: web.Request) -> web.Response:
        """A page with the result of a form with pictures."""
        async with self._uploads:
            try:
                form = await forms.read_upload(request)
            except FormError as error:
                return self._render(
                    page, Form(), status=error.status, error=errors.sentence(error, self._target)
                )
            return await self._respond(page, form, True)

    async def _respond(self, page: Page, form: Form, is_filled_in: bool) -> web.Response:
        served: dict[str, ModelInfo] = {}
        try:
            served = await models.serving(self._client)
            name = form.fields.get("model") or next(iter(served), "")
            result = await page.answer(self._client, name, form) if is_filled_in else None
        except (FormError, InvalidImageError, RequestError) as error:
            sentence = errors.sentence(error, self._target)
            return self._render(page, form, served, status=errors.status(error), error=sentence)
        return self._render(page, form, served, result)

    def _render(
        self,
        page: Page,
        form: Form,
        served: dict[str, ModelInfo] | None = None,
        result: Result | None = None,
        *,
        status: int = 200,
        error: str = "",
    ) -> web.Response:
        text = self._templates.get_template(f"{page.path}.html").render(
            page=page,
            pages=PAGES,
            target=self._target,
            fields=form.fields,
            models=served or {},
            result=result,
            error=error,
            most_pictures=forms.MOST_PICTURES,
            most_bytes=forms.MOST_BYTES,
            too_many=forms.too_many(),
            too_large=forms.too_large(),
        )
        return web.Response(text=text, status=status, content_type="text/html")


async def serve(
    client: AsyncClient, target: str, host: str, port: int, announce: Callable[[str], None]
) -> None:
    """Serves the pages until the task is cancelled.

    Args:
        client: a client of the service.
        target: the service's HOST:PORT, for sentences.
        host: where to listen: an IP address, or the name of one.
        port: 0 for a free one.
        announce: called with the URL of the pages once they are served.

    Raises:
        ListenError: the address is in use, or cannot be had.
    """
    application = Pages(client, target).application()
    runner = web.AppRunner(application, access_log=None, handler_cancellation=True)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise ListenError(_reason(error, host, port)) from None
    announce(_url(runner.addresses[0]))
    try:
        await asyncio.get_running_loop().create_future()
    finally:
        await runner.cleanup()


def _reason(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: pass another --port, or 0 for a free one"
    return f"the page cannot listen on {host}, port {port}: {error.strerror}"


def _url(address: tuple[str, int]) -> str:
    host, port = address[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

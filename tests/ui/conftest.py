"""The pages of a service, and a real browser that looks at them.

A browser belongs to a module: Playwright's event loop, once it runs, keeps tests of other modules from having one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from glowserve_service.server import Server

from glowserve.images import UInt8Array, encode_png
from tests.servers import RunServer
from tests.service.stubs import address
from tests.ui.serving import serve_pages


def chromium() -> str:
    """The path of the browser; skips the test if there is none."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install 'glowserve[dev]'")
    found = os.environ.get("GLOWSERVE_CHROMIUM") or shutil.which("chromium")
    if found is None:
        pytest.skip("no chromium: apt-get install chromium fonts-dejavu-core, or set GLOWSERVE_CHROMIUM")
    return found


@pytest.fixture(scope="session")
def server(run_server: RunServer, attributed_repository: Path) -> Iterator[Server]:
    """A server of the shared model with attributes; `client` calls it, too. It tries no canary, as the other one."""
    with run_server(repository=attributed_repository, canary_seconds=0) as running:
        yield running


@pytest.fixture(scope="module")
def url(server: Server) -> Iterator[str]:
    """The URL of the pages of that service."""
    with serve_pages(address(server)) as served:
        yield served


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Chromium's own sandbox does not start as root, and containers run tests as root.
        launched = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: Any, url: str) -> Iterator[Any]:
    """A fresh tab. At the end, nothing may have failed or been asked for elsewhere, and no script complained."""
    tab = browser.new_page(base_url=url)
    tab.set_default_timeout(30_000)
    asked: list[str] = []
    complaints: list[str] = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("requestfailed", lambda request: complaints.append(f"{request.url}: {request.failure}"))
    tab.on("pageerror", lambda error: complaints.append(str(error)))
    tab.on("console", lambda message: complaints.append(message.text))
    yield tab
    tab.close()
    expected = "server responded with a status of 4"  # a page that says what was wrong
    assert [each for each in complaints if expected not in each and "ERR_ABORTED" not in each] == []
    assert [each for each in asked if not each.startswith((url, "data:"))] == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, digits: UInt8Array) -> Path:
    """Twenty digits in a folder with a picture of noise, an inverted digit, and a file that is no picture."""
    path = tmp_path_factory.mktemp("pictures")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 1), np.uint8)
    pictures = {f"digit-{i:02}": digits[i] for i in range(20)} | {"noise": noise, "inverted": 255 - digits[3]}
    for name, image in pictures.items():
        (path / f"{name}.png").write_bytes(encode_png(image))
    (path / "notes.txt").write_text("no picture")
    return path

"""Other sites in the visitor's browser: they can neither use the service through the pages, nor read them."""

from __future__ import annotations

import pytest

from glowserve.images import UInt8Array, encode_png
from tests.ui.http_requests import ask, post


@pytest.mark.parametrize(
    "host", ["localhost:8003", "LOCALHOST", "127.0.0.1:1", "[::1]:8003", "192.168.1.7:8003"]
)
def test_localhost_and_addresses_are_accepted_as_host(url: str, host: str) -> None:
    assert ask(url, "/sample", Host=host).status == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example:8003", "127.0.0.1.evil.example", "", "a b", "@"]
)
def test_a_name_that_was_made_to_lead_here_is_refused(url: str, host: str) -> None:
    assert ask(url, "/sample?n=1", Host=host).status in (400, 421)


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://localhost:1", ""])
def test_a_form_of_another_site_is_refused(url: str, origin: str, digits: UInt8Array) -> None:
    picture = [("pictures", "a.png", encode_png(digits[0]))]
    assert post(url, "/score", picture, Origin=origin).status == 403
    assert post(url, "/score", picture, Origin=url).status == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_what_another_site_embeds_is_refused_and_a_link_to_a_page_works(url: str, site: str) -> None:
    def status(**headers: str) -> int:
        return ask(url, "/sample?n=1", Sec_Fetch_Site=site, **headers).status

    assert status(Sec_Fetch_Mode="no-cors", Sec_Fetch_Dest="image") == 403
    assert status(Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="iframe") == 403
    assert status(Sec_Fetch_Mode="cors", Sec_Fetch_Dest="empty") == 403
    assert status(Sec_Fetch_Mode="navigate", Sec_Fetch_Dest="document") == 200
    assert ask(url, "/sample?n=1", Sec_Fetch_Site="same-origin", Sec_Fetch_Mode="cors").status == 200


@pytest.mark.parametrize("path", ["/", "/score", "/sample?n=bad", "/static/ui.js", "/missing", "/static/"])
def test_every_response_says_that_nothing_comes_from_elsewhere(url: str, path: str) -> None:
    headers = ask(url, path).headers
    assert headers["Content-Security-Policy"].startswith("default-src 'none'; img-src 'self' data:;")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize(
    "path", ["/static/../server.py", "/static/%2e%2e/server.py", "/static//etc/passwd", "/static/"]
)
def test_only_the_pages_own_files_are_served(url: str, path: str) -> None:
    assert ask(url, path).status in (403, 404)

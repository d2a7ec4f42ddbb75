"""The pages in a browser, as a visitor uses them: with a mouse, with a keyboard, and without JavaScript."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

import glowserve
from glowserve.images import UInt8Array, decode_png
from tests.ui.data_urls import data_of


def names(page: Any) -> list[str]:
    """The names of the pictures that are shown, in order."""
    found: list[str] = page.locator(".card h4").all_inner_texts()
    return found


def ask(page: Any) -> None:
    """Sends the form, and waits for the result."""
    page.click("button")
    page.wait_for_selector("#result h2")


def drop(page: Any, *paths: Path) -> None:
    """Drops files and folders on the page, as an operating system does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 200, "y": 500, "data": data})


def test_chosen_pictures_are_scored_the_oddest_first(
    page: Any, folder: Path, client: glowserve.Client
) -> None:
    files = [folder / f"{name}.png" for name in ("digit-01", "noise", "digit-02")]
    page.goto("/")
    page.set_input_files("#pictures", files)
    ask(page)
    scores = client.score(files, scores=["anomalous"])
    assert scores.anomalous is not None
    assert scores.anomaly_p_value is not None
    assert page.inner_text("#result h2") == f"{scores.anomalous.sum()} of 3 pictures are anomalous"
    order = sorted(range(3), key=lambda i: (scores.anomaly_p_value[i], -scores.bits_per_dim[i]))
    assert names(page) == [files[i].name for i in order]
    for card, i in zip(page.locator(".card").all(), order, strict=True):
        text = card.inner_text()
        assert ("Not anomalous" in text) is not scores.anomalous[i]
        assert f"{scores.bits_per_dim[i]:.3f}" in text
        assert f"{scores.anomaly_p_value[i]:.4f}" in text
        assert f"{scores.percentile[i]:.1f}" in text


def test_each_picture_has_its_heat_map_and_its_place_in_the_histogram(
    page: Any, folder: Path, client: glowserve.Client, digits: UInt8Array
) -> None:
    page.goto("/score")
    page.set_input_files("#pictures", [folder / "digit-05.png", folder / "noise.png"])
    ask(page)
    noise, digit = page.locator(".card").all()
    images = [decode_png(data_of(each.get_attribute("src"))) for each in digit.locator("img").all()]
    np.testing.assert_array_equal(images[0], digits[5])
    assert images[1].shape == (8, 8, 3)
    redness = [np.subtract(*np.moveaxis(_map(each).astype(int), 2, 0)[::2]).mean() for each in (noise, digit)]
    assert redness[0] > redness[1] + 20  # what is unlikely is red
    described = [each.locator("svg").get_attribute("aria-label") for each in (noise, digit)]
    assert described[0].endswith("beyond the drawing.")
    assert f"this picture {client.score(digits[5]).bits_per_dim[0]:.3f}." in described[1]


def _map(card: Any) -> UInt8Array:
    return decode_png(data_of(card.locator("img").nth(1).get_attribute("src")))


def test_a_folder_becomes_a_gallery_of_its_worst_and_best(page: Any, folder: Path) -> None:
    page.goto("/score")
    page.set_input_files("#folder", folder)
    ask(page)
    assert re.fullmatch(r"\d+ of 22 pictures are anomalous", page.inner_text("#result h2"))
    assert page.locator("h3").all_inner_texts() == ["The 8 that belong least", "The 8 that belong most"]
    assert {"noise.png", "inverted.png"} == set(names(page)[:2])
    assert len(names(page)) == len(set(names(page))) == 16
    page.click("summary")
    rows = page.locator("tbody tr").all_inner_texts()
    assert len(rows) == 22
    values = [float(row.split("\t")[3]) for row in rows]
    assert values == sorted(values)


def test_dropped_pictures_and_folders_are_scored_at_once(page: Any, folder: Path) -> None:
    page.goto("/score")
    drop(page, folder)
    page.wait_for_selector("text=of 22 pictures")
    drop(page, folder / "noise.png", folder / "digit-01.png")
    page.wait_for_selector("text=of 2 pictures")
    assert names(page) == ["noise.png", "digit-01.png"]


def test_a_file_that_is_no_picture_is_named_beside_the_scores_of_the_others(page: Any, folder: Path) -> None:
    page.goto("/score")
    page.set_input_files("#pictures", [folder / "notes.txt", folder / "digit-01.png"])
    ask(page)
    assert names(page) == ["digit-01.png"]
    assert "notes.txt: " in page.inner_text(".errors")


def test_more_than_the_page_takes_is_said_before_it_is_sent(page: Any, tmp_path: Path) -> None:
    large = tmp_path / "large.png"
    with large.open("wb") as file:
        file.truncate(129 * 2**20)
    page.goto("/score")
    page.set_input_files("#pictures", [large])
    posts: list[str] = []
    page.on("request", lambda request: posts.append(request.method))
    page.click("button")
    page.wait_for_selector("#result .error")
    assert page.inner_text("#result .error").startswith(
        "the pictures have more than 128 MiB together: choose"
    )
    assert posts == []


def test_the_name_of_a_file_is_text_and_no_markup(page: Any, folder: Path) -> None:
    script = "<img src=x onerror=alert(1)>.png"
    page.goto("/score")
    data = (folder / "digit-01.png").read_bytes()
    page.set_input_files("#pictures", [{"name": script, "mimeType": "image/png", "buffer": data}])
    ask(page)
    assert names(page) == [script]


def test_samples_follow_the_sliders(page: Any, client: glowserve.Client) -> None:
    page.goto("/sample")
    page.focus("#seed")
    page.keyboard.press("ArrowRight")
    page.wait_for_selector("text=16 images at temperature 0.7, seed 1")
    assert page.evaluate("document.activeElement.id") == "seed"
    assert page.inner_text("#status") == "16 images at temperature 0.7, seed 1"
    first = page.get_attribute("img.grid", "src")
    page.focus("#temperature")
    page.keyboard.press("End")
    page.wait_for_selector("text=16 images at temperature 1.5, seed 1")
    assert page.get_attribute("img.grid", "src") != first
    page.reload()  # the address has the values of the sliders
    assert page.input_value("#temperature") == "1.5"
    picture = decode_png(data_of(page.get_attribute("img.grid", "src")))
    scale = picture.shape[0] // 37  # four rows of 8 pixels, and five lines
    drawn = picture[scale : 9 * scale : scale, scale : 9 * scale : scale]
    np.testing.assert_array_equal(drawn, client.sample(16, temperature=1.5, seed=1).images[0])


def test_a_walk_between_two_pictures_is_followed_with_a_slider(
    page: Any, folder: Path, client: glowserve.Client
) -> None:
    one, other = folder / "digit-01.png", folder / "digit-02.png"
    page.goto("/interpolate")
    page.set_input_files("#first", one)
    page.set_input_files("#last", other)
    ask(page)
    assert page.inner_text("#result h2") == "8 images from digit-01.png to digit-02.png"
    shown = [decode_png(data_of(each.get_attribute("src"))) for each in page.locator(".strip img").all()]
    np.testing.assert_array_equal(shown, client.interpolate(one, other, steps=8))
    page.focus("#position")
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert page.get_attribute("#step", "alt") == "Image 3 of 8"
    assert page.get_attribute("#step", "src") == page.get_attribute(".strip li:nth-child(3) img", "src")


def test_a_picture_moves_along_the_attributes_that_are_ticked(
    page: Any, folder: Path, client: glowserve.Client, digits: UInt8Array
) -> None:
    page.goto("/attributes")
    page.set_input_files("#original", folder / "digit-01.png")
    page.check("text=bright")
    page.check("text=top")
    ask(page)
    assert page.inner_text("#result h2") == "digit-01.png along bright and top, strengths -2 to 2"
    shown = [decode_png(data_of(each.get_attribute("src"))) for each in page.locator(".strip img").all()]
    expected = client.manipulate(digits[1], ["bright", "top"], np.linspace(-2, 2, 9))
    np.testing.assert_array_equal(shown, expected)
    assert page.get_attribute("#step", "alt") == "Strength 0"  # the walk begins with the picture itself
    np.testing.assert_array_equal(decode_png(data_of(page.get_attribute("#step", "src"))), digits[1])
    page.focus("#position")
    page.keyboard.press("ArrowRight")
    assert page.get_attribute("#step", "alt") == "Strength 0.5"


def test_every_page_works_without_scripts(browser: Any, url: str, folder: Path) -> None:
    context = browser.new_context(java_script_enabled=False, base_url=url)
    page = context.new_page()
    page.goto("/score")
    page.set_input_files("#pictures", [folder / "digit-01.png", folder / "noise.png"])
    ask(page)
    assert names(page) == ["noise.png", "digit-01.png"]
    page.goto("/sample")
    ask(page)
    assert page.inner_text("#result h2") == "16 images at temperature 0.7, seed 0"
    page.goto("/interpolate")
    page.set_input_files("#first", folder / "digit-01.png")
    page.set_input_files("#last", folder / "digit-02.png")
    ask(page)
    assert page.locator(".strip img").count() == 8
    assert not page.is_visible(".walk")
    page.goto("/attributes")
    page.set_input_files("#original", folder / "digit-01.png")
    page.check("text=top")
    ask(page)
    assert page.inner_text("#result h2") == "digit-01.png along top, strengths -2 to 2"
    assert page.locator(".strip").inner_text().split() == [
        "-2",
        "-1.5",
        "-1",
        "-0.5",
        "0",
        "0.5",
        "1",
        "1.5",
        "2",
    ]
    assert page.locator(":checked").get_attribute("value") == "top"
    context.close()


@contextmanager
def another_site(html: str) -> Iterator[str]:
    """A site on this machine that is not the pages': it is called localhost, and they 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(html.encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as site:
        thread = threading.Thread(target=site.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{site.server_port}/"
        finally:
            site.shutdown()
            thread.join()


def test_a_form_of_another_site_is_refused(browser: Any, url: str) -> None:
    html = (
        f'<form method="post" enctype="multipart/form-data" action="{url}/score"><button>Win</button></form>'
    )
    page = browser.new_page()
    with another_site(html) as site:
        page.goto(site)
        with page.expect_response(f"{url}/score", timeout=20_000) as posted:
            page.click("button")
        assert posted.value.status == 403
        assert "Another site made this request" in page.inner_text("body")
    page.close()

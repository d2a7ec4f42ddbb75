"""The pages for those who use a keyboard, a screen reader, or a small window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glowserve.ui.pages import PAGES

PATHS = [f"/{page.path}" for page in PAGES]


def fill(page: Any, path: str, folder: Path) -> None:
    """Opens a page, and sends its form."""
    page.goto(path)
    files = {"/score": ["#pictures"], "/interpolate": ["#first", "#last"], "/attributes": ["#original"]}
    for i, field in enumerate(files.get(path, [])):
        page.set_input_files(field, folder / f"digit-{i:02}.png")
    if path == "/attributes":
        page.check("text=bright")
    page.click("button")
    page.wait_for_selector("#result h2")


@pytest.mark.parametrize("path", PATHS)
def test_no_rule_of_accessibility_is_broken_with_and_without_a_result(
    page: Any, path: str, folder: Path
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page.goto(path)
    empty = Axe().run(page)
    fill(page, path, folder)
    filled = Axe().run(page)
    assert (empty.generate_report(), empty.violations_count) == (empty.generate_report(), 0)
    assert (filled.generate_report(), filled.violations_count) == (filled.generate_report(), 0)


@pytest.mark.parametrize("path", PATHS)
def test_a_result_that_was_asked_for_gets_the_focus_and_is_read(page: Any, path: str, folder: Path) -> None:
    fill(page, path, folder)
    assert page.evaluate("document.activeElement.tagName") == "H2"
    assert page.get_attribute("#result", "aria-busy") is None


def test_the_tab_key_goes_through_a_page_in_the_order_of_reading(page: Any) -> None:
    page.goto("/score")
    reached = []
    for _ in range(8):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
    assert reached == [
        "Skip to the page",
        "Score",
        "Sample",
        "Interpolate",
        "Attributes",
        "pictures",
        "folder",
        "Score",
    ]


def test_the_keyboard_alone_draws_samples(page: Any) -> None:
    page.goto("/sample")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips the navigation
    for key in ("Tab", "ArrowRight", "Tab", "End", "Tab", "Home", "Tab", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("text=1 image at temperature 0.75, seed 999")


def test_the_keyboard_alone_moves_a_picture(page: Any, folder: Path) -> None:
    page.goto("/attributes")
    page.set_input_files("#original", folder / "digit-01.png")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")  # skips the navigation
    for key in ("Tab", "Space", "Tab", "Space", "Tab", "Tab", "Home", "Tab", "Enter"):
        page.keyboard.press(key)
    page.wait_for_selector("text=digit-01.png along bright and top, strengths -0.5 to 0.5")
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowLeft")
    assert page.get_attribute(":focus", "aria-valuetext") == "Strength -0.125"


def test_an_error_gets_the_focus_and_is_read(page: Any) -> None:
    page.goto("/score")
    page.click("button")
    page.wait_for_selector(".error")
    assert page.evaluate("document.activeElement.textContent") == (
        "There are no pictures: choose some, or drop them on the page"
    )


@pytest.mark.parametrize("path", PATHS)
def test_a_narrow_window_needs_no_scrolling_to_the_side(page: Any, path: str, folder: Path) -> None:
    page.set_viewport_size({"width": 320, "height": 600})
    fill(page, path, folder)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320

"""The choice among the models of a service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.serving import serve
from tests.ui.http_requests import ask
from tests.ui.serving import serve_pages


class Listing(GlowServiceServicer):
    """Serves three models, one of them in two versions, and records which of them each request names."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ListModels(self, request: Any, context: Any) -> Any:
        found = [
            pb.ModelSummary(
                model=pb.ModelVersion(name=name, version=version),
                state=state,
                attributes=attributes,
                classes=classes,
            )
            for name, version, state, attributes, classes in (
                ("birds", 1, pb.MODEL_STATE_SERVING, [], []),
                ("cats", 1, pb.MODEL_STATE_SERVING, ["old"], ["none"]),
                ("cats", 2, pb.MODEL_STATE_SERVING, ["fat", "<b>"], ["Manx", "<i>"]),
                ("dogs", 1, pb.MODEL_STATE_FAILING, ["wet"], ["pug"]),
            )
        ]
        late = pb.ModelSummary(model=pb.ModelVersion(name="late", version=1), state=pb.MODEL_STATE_LOADING)
        return pb.ListModelsResponse(models=found, not_served=[late])

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked += filter(None, (request.model.name, request.class_name))
        context.abort(grpc.StatusCode.NOT_FOUND, "asleep")
        yield from ()

    def Manipulate(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked += [request.model.name, *request.attributes]
        context.abort(grpc.StatusCode.NOT_FOUND, "asleep")


@pytest.fixture(scope="module")
def listing() -> Listing:
    return Listing()


@pytest.fixture(scope="module")
def listing_url(listing: Listing) -> Iterator[str]:
    with serve(listing) as target, serve_pages(target) as served:
        yield served


def options(text: str) -> list[tuple[str, str]]:
    """Whether each model is selected, and its name."""
    return re.findall(r"<option( selected)?>(\w+)</option>", text)


def test_every_model_that_is_served_can_be_chosen(listing_url: str) -> None:
    assert options(ask(listing_url, "/sample").text) == [("", "birds"), ("", "cats"), ("", "dogs")]


def test_the_chosen_model_is_asked_and_stays_chosen(listing_url: str, listing: Listing) -> None:
    listing.asked.clear()
    answer = ask(listing_url, "/sample?model=dogs&n=1")
    assert listing.asked == ["dogs"]
    assert (answer.status, answer.error[-7:]) == (400, " asleep")
    assert options(answer.text) == [("", "birds"), ("", "cats"), (" selected", "dogs")]


def test_without_a_choice_the_first_is_asked(listing_url: str, listing: Listing) -> None:
    listing.asked.clear()
    ask(listing_url, "/sample?n=1")
    assert listing.asked == ["birds"]


def test_one_model_needs_no_choice(url: str) -> None:
    assert options(ask(url, "/sample").text) == []


def test_the_attributes_of_the_newest_version_of_each_model_can_be_ticked(listing_url: str) -> None:
    text = ask(listing_url, "/attributes").text
    assert re.findall(r"<legend>(.*?)</legend>", text) == ["Attributes of cats", "Attributes of dogs"]
    assert re.findall(r'name="attribute" value="(.*?)"', text) == ["fat", "&lt;b&gt;", "wet"]


def test_a_model_without_attributes_names_the_command_that_computes_them(listing_url: str) -> None:
    text = ask(listing_url, "/attributes").text
    assert re.findall(r"<code>(.*?)</code>", text) == [
        "glowserve attributes REPOSITORY/birds --data LABELLED"
    ]


def test_the_attributes_of_the_chosen_model_alone_are_shown_and_sent(
    browser: Any, listing_url: str, listing: Listing, digits: UInt8Array
) -> None:
    page = browser.new_page(base_url=listing_url)
    page.goto("/attributes")
    assert page.is_visible("code")
    page.select_option("#model", "dogs")
    page.check("text=wet")
    page.select_option("#model", "cats")
    assert page.locator("legend:visible").all_inner_texts() == ["Attributes of cats"]
    assert not page.is_visible("code")
    page.check("text=fat")
    png = {"name": "a.png", "mimeType": "image/png", "buffer": encode_png(digits[0])}
    page.set_input_files("#original", png)
    listing.asked.clear()
    page.click("button")
    page.wait_for_selector("text=asleep")
    assert listing.asked == ["cats", "fat"]
    page.close()


def test_the_classes_of_the_newest_version_of_each_model_that_has_any_can_be_chosen(listing_url: str) -> None:
    text = ask(listing_url, "/sample").text
    assert re.findall(r'name="class-(.*?)"', text) == ["cats", "dogs"]
    assert re.findall(r'<option value="(.+?)"', text) == ["Manx", "&lt;i&gt;", "pug"]


def test_the_class_of_the_chosen_model_alone_is_asked_and_stays_chosen(
    listing_url: str, listing: Listing
) -> None:
    listing.asked.clear()
    text = ask(listing_url, "/sample?model=cats&class-cats=Manx&class-dogs=pug&n=1").text
    assert listing.asked == ["cats", "Manx"]
    assert re.findall(r'<option value="(.+?)" selected', text) == ["Manx", "pug"]
    listing.asked.clear()
    ask(listing_url, "/sample?model=birds&class-cats=Manx&n=1")
    assert listing.asked == ["birds"]


def test_the_class_of_the_chosen_model_alone_is_shown_and_sent(
    browser: Any, listing_url: str, listing: Listing
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    page = browser.new_page(base_url=listing_url)
    page.goto("/sample")
    assert page.locator("label:visible", has_text="Class").count() == 0
    page.select_option("#model", "dogs")
    page.select_option("text=Class of dogs", "pug")
    page.select_option("#model", "cats")
    assert not page.is_visible("text=Class of dogs")
    assert Axe().run(page).violations_count == 0
    page.select_option("text=Class of cats", "<i>")
    listing.asked.clear()
    page.click("button")
    page.wait_for_selector("text=asleep")
    assert listing.asked == ["cats", "<i>"]
    assert "dogs" not in page.url
    page.close()

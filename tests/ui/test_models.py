"""The choice among the models of a service."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import grpc
import pytest

from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.serving import serve
from tests.ui.http_requests import ask
from tests.ui.serving import serve_pages


class Listing(GlowServiceServicer):
    """Serves two models, one of them in two versions, and notes which of them is asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def ListModels(self, request: Any, context: Any) -> Any:
        found = [
            pb.ModelSummary(model=pb.ModelVersion(name=name, version=version), state=state)
            for name, version, state in (
                ("cats", 1, pb.MODEL_STATE_SERVING),
                ("cats", 2, pb.MODEL_STATE_SERVING),
                ("dogs", 1, pb.MODEL_STATE_FAILING),
            )
        ]
        late = pb.ModelSummary(model=pb.ModelVersion(name="late", version=1), state=pb.MODEL_STATE_LOADING)
        return pb.ListModelsResponse(models=found, not_served=[late])

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(request.model.name)
        context.abort(grpc.StatusCode.NOT_FOUND, "asleep")
        yield from ()


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
    assert options(ask(listing_url, "/sample").text) == [("", "cats"), ("", "dogs")]


def test_the_chosen_model_is_asked_and_stays_chosen(listing_url: str, listing: Listing) -> None:
    listing.asked.clear()
    answer = ask(listing_url, "/sample?model=dogs&n=1")
    assert listing.asked == ["dogs"]
    assert (answer.status, answer.error[-7:]) == (400, " asleep")
    assert options(answer.text) == [("", "cats"), (" selected", "dogs")]


def test_without_a_choice_the_first_is_asked(listing_url: str, listing: Listing) -> None:
    listing.asked.clear()
    ask(listing_url, "/sample?n=1")
    assert listing.asked == ["cats"]


def test_one_model_needs_no_choice(url: str) -> None:
    assert options(ask(url, "/sample").text) == []

"""Errors of the service, as a visitor reads them."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import grpc
import pytest

from glowserve.images import UInt8Array, encode_png
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceServicer
from tests.client.serving import serve
from tests.servers import RunServer, free_port
from tests.service.stubs import address
from tests.ui.http_requests import ask, post
from tests.ui.serving import serve_pages

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models"


def test_a_service_that_is_away_is_named_on_every_page() -> None:
    target = f"127.0.0.1:{free_port()}"
    with serve_pages(target) as url:
        answer = ask(url, "/score")
    assert answer.status == 502
    assert answer.error.startswith(
        f"The service {target} is not available; is `glowserve serve` running there? "
    )


def test_a_missing_token_is_named(run_server: RunServer, tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("reader " + "a" * 32 + "\n")
    with run_server(tokens=tmp_path / "tokens") as server:
        with serve_pages(address(server)) as url:
            refused = ask(url, "/sample?n=1")
        with serve_pages(address(server), token="a" * 32) as url:
            assert ask(url, "/sample?n=1").status == 200
    assert refused.status == 502
    assert "does not permit this to the page's token" in refused.error


@pytest.mark.parametrize(
    ("query", "error"),
    [
        ("temperature=hot", "Temperature is 'hot'; it must be a number from 0 to 1.5"),
        ("temperature=nan", "Temperature is 'nan'; it must be a number from 0 to 1.5"),
        ("temperature=1e9", "Temperature is '1e9'; it must be a number from 0 to 1.5"),
        ("n=65", "N is '65'; it must be a whole number from 1 to 64"),
        ("n=1.5", "N is '1.5'; it must be a whole number from 1 to 64"),
        ("seed=-1", "Seed is '-1'; it must be a whole number from 0 to 999"),
    ],
)
def test_a_value_that_makes_no_sense_is_named_with_the_values_that_do(
    url: str, query: str, error: str
) -> None:
    answer = ask(url, f"/sample?{query}")
    assert (answer.status, answer.error) == (400, error)


def test_a_model_that_is_not_there_is_named(url: str) -> None:
    answer = ask(url, "/sample?model=%3Cb%3E")
    assert answer.status == 400
    assert "'<b>'" in answer.error
    assert "<b>" not in answer.text


def test_a_model_without_calibration_has_scores_and_no_verdicts(
    run_server: RunServer, digits: UInt8Array
) -> None:
    """A bundle of the first release, which has no heat maps either."""
    with run_server(repository=OLD) as server, serve_pages(address(server)) as url:
        answer = post(url, "/score", [("pictures", "old.png", encode_png(digits[0]))])
    assert answer.status == 200
    assert "1 picture has scores" in answer.text
    assert "adds it" in answer.text
    assert "There are no heat maps: " in answer.text
    assert answer.text.count("<svg") == 1


class Hanging(GlowServiceServicer):
    """Serves a model that never answers."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()

    def ListModels(self, request: Any, context: Any) -> Any:
        return pb.ListModelsResponse(
            models=[pb.ModelSummary(model=pb.ModelVersion(name="m", version=1), state=pb.MODEL_STATE_SERVING)]
        )

    def Sample(self, request: Any, context: grpc.ServicerContext) -> Any:
        context.add_callback(self.cancelled.set)
        while not self.cancelled.wait(0.05):
            pass
        yield from ()


def test_a_service_that_hangs_is_an_error_after_the_clients_timeout() -> None:
    servicer = Hanging()
    began = time.monotonic()
    with serve(servicer) as target, serve_pages(target, timeout=0.5) as url:
        answer = ask(url, "/sample?n=1")
    assert answer.status == 502
    assert "answers DEADLINE_EXCEEDED: " in answer.error
    assert time.monotonic() - began < 30


def test_a_visitor_who_leaves_cancels_the_call() -> None:
    servicer = Hanging()
    with serve(servicer) as target, serve_pages(target) as url:
        with pytest.raises(TimeoutError):
            ask(url, "/sample?n=1", timeout=0.5)
        assert servicer.cancelled.wait(10)

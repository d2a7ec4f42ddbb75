"""Errors and rows between a front-end and the engine process."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from glowserve_service.config import ServiceConfig
from glowserve_service.errors import WaitTooLongError
from glowserve_service.front.status import trailing_metadata
from glowserve_service.frontends import protocol
from glowserve_service.frontends.descriptions import packed_config, unpacked_config
from glowserve_service.frontends.protocol import EngineProcessError, Layout, layouts, packed_error

from glowserve.runtime.errors import GlowserveError, InvalidRequestError, NotFiniteError
from glowserve.runtime.repository import Bundle


@pytest.mark.parametrize("kind", sorted(protocol._ERRORS.values(), key=lambda kind: kind.__name__))
def test_an_error_of_every_kind_keeps_its_type_and_its_sentence(kind: type[GlowserveError]) -> None:
    error = kind("the sentence", 3) if kind is NotFiniteError else kind("the sentence")  # type: ignore[call-arg]
    copied = protocol.unpacked_error(packed_error(error))
    assert type(copied) is kind
    assert str(copied) == "the sentence"
    assert vars(copied) == vars(error)
    assert trailing_metadata(copied, "the sentence") == trailing_metadata(error, "the sentence")


def test_an_error_keeps_its_facts() -> None:
    late = protocol.unpacked_error(packed_error(WaitTooLongError("too long", 7.5)))
    assert isinstance(late, WaitTooLongError)
    assert late.retry_seconds == 7.5
    error = InvalidRequestError("too many", "images", {"max_images_per_call": 256})
    error.place("requests[3]")
    copied = protocol.unpacked_error(packed_error(error))
    assert isinstance(copied, InvalidRequestError)
    assert (copied.field, copied.limits) == ("requests[3].images", {"max_images_per_call": 256})


def test_another_error_becomes_its_traceback() -> None:
    def fail() -> None:
        raise RuntimeError("of the engine")

    with pytest.raises(RuntimeError) as caught:
        fail()
    copied = protocol.unpacked_error(packed_error(caught.value))
    assert isinstance(copied, EngineProcessError)
    assert "RuntimeError: of the engine" in str(copied)
    assert "in fail" in str(copied)


def test_the_arrays_of_a_block_are_apart_from_each_other(bundle: Bundle, rng: np.random.Generator) -> None:
    for layout in layouts(bundle):
        block = np.zeros(layout.size(5), np.uint8)
        rows, results = layout.views(block, 5)
        for array in (*rows, *results):
            array.reshape(-1).view(np.uint8)[:] += np.uint8(1)
        assert block.max() == 1
        assert sum(array.nbytes for array in (*rows, *results)) == np.count_nonzero(block)
        assert isinstance(layout, Layout)


def test_settings_stay_as_they_are(tmp_path: Path) -> None:
    config = ServiceConfig(
        repository=tmp_path, tokens=tmp_path / "tokens", frontends=4, max_queue_delay_ms=0.5
    )
    assert unpacked_config(packed_config(config)) == config


def test_a_front_end_has_its_share_of_the_limits(tmp_path: Path) -> None:
    config = ServiceConfig(repository=tmp_path, frontends=3, max_concurrent_calls=100, max_received_mib=1)
    share = config.of_frontend(port=1234)
    assert (share.port, share.max_concurrent_calls, share.max_connections) == (1234, 34, 3334)
    assert share.max_received_bytes == share.max_message_bytes

"""Numbers at and beyond the ends of what a setting may be: refused with a sentence, or a call is served."""

from __future__ import annotations

import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from glowserve_service.config import ServiceConfig

from glowserve.images import UInt8Array
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.stubs import connect
from tests.service.wire import raw

NUMBERS = [setting for setting in fields(ServiceConfig) if setting.metadata.get("range")]
EXTREMES = [math.nan, math.inf, -math.inf, -1, 0, 0.0001, 1.5, 1e12, 5_000_000_000, 2**63, 10**400, "1", None]
# With the largest delay a call would wait for a full batch; a batch is full with one image.
FULL = {"max_batch_size": 1}
# As many processes as the range allows take two cores 40 s to start.
FEW = {"frontends": 2}
FREE = {"port": 0, "metrics_port": 0}


def test_every_number_has_a_range() -> None:
    numbers = [setting.name for setting in fields(ServiceConfig) if isinstance(setting.default, int | float)]
    assert [setting.name for setting in NUMBERS] == numbers


@pytest.mark.parametrize("value", EXTREMES)
@pytest.mark.parametrize("setting", NUMBERS, ids=lambda setting: setting.name)
def test_what_is_out_of_range_is_refused_with_a_sentence(setting: Any, value: Any) -> None:
    numbers = setting.metadata["range"]
    whole = isinstance(setting.default, int)
    allowed = isinstance(value, int if whole else int | float) and (
        (value == 0 and numbers.or_zero) or numbers.least <= value <= numbers.most
    )
    settings: dict[str, Any] = {"repository": Path(), setting.name: value}
    if allowed:
        ServiceConfig(**settings)
        return
    with pytest.raises(
        ValueError, match=rf"^{setting.name} is .*; it must be (0, or )?a (whole )?number from .* to "
    ):
        ServiceConfig(**settings)


def ends(name: str) -> dict[str, Any]:
    """Every number at that end of its range."""
    return {
        setting.name: type(setting.default)(getattr(setting.metadata["range"], name)) for setting in NUMBERS
    }


@pytest.mark.parametrize(
    "settings",
    [
        # A connection that has reached its age of 0.1 s may still be there while the next one begins.
        ends("least") | {"load_timeout_seconds": 60.0, "max_connections": 16},
        ends("most") | FULL | FEW,
        {setting.name: 0 for setting in NUMBERS if setting.metadata["range"].or_zero},
        {"max_batch_size": 16_384, "max_queue_size": 16_384},
    ],
    ids=["least", "most", "zero", "batch"],
)
def test_at_the_ends_of_the_ranges_calls_are_served(
    run_server: RunServer, digits: UInt8Array, settings: dict[str, Any]
) -> None:
    with run_server(**settings | FREE) as server, connect(server) as stubs:
        for _ in range(3):
            assert len(stubs.glow.Score(pb.ScoreRequest(images=raw(digits[:1])), timeout=60).scores) == 1

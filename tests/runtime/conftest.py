"""Fixtures for the tests of the runtime."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import DeviceError
from glowserve.runtime.repository import Bundle
from tests.runtime.gpu import SIZES


@pytest.fixture(scope="session")
def gpu(bundle: Bundle) -> Iterator[Engine]:
    """The shared model on a GPU, as a service with `--device cuda` runs it. Skips the test without a GPU."""
    try:
        engine = Engine(bundle, RuntimeConfig(device="cuda", batch_sizes=SIZES))
    except DeviceError as error:
        pytest.skip(f"no GPU works here: {error}")
    yield engine
    engine.close()

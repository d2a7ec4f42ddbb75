"""Samples that are not finite, through every client: the others arrive under their indices."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import glowserve
from glowserve.runtime.engine import Engine
from tests.attempts import attempts
from tests.client.conftest import CLIENTS
from tests.servers import RunServer
from tests.service.stubs import address

N = 70


@pytest.fixture(params=["server", "embedded", "asyncio"], scope="module")
def explosive(
    request: pytest.FixtureRequest, run_server: RunServer, explosive_repository: Path
) -> Iterator[glowserve.Client]:
    """Each client of a model whose samples are not finite in about half of the attempts."""
    if request.param == "embedded":
        yield glowserve.open(explosive_repository / "digits")
        return
    with (
        run_server(repository=explosive_repository) as server,
        CLIENTS[request.param](address(server)) as client,
    ):
        yield client


def test_the_others_arrive_under_their_indices_and_those_without_an_image_are_listed(
    explosive: glowserve.Client, explosive_engine: Engine
) -> None:
    expected = attempts(explosive_engine, 2, N)
    samples = explosive.sample(N, seed=2)
    assert 0 < len(samples.not_finite) < N / 3
    assert samples.not_finite.tolist() == expected.not_finite
    assert samples.indices.tolist() == expected.indices
    np.testing.assert_array_equal(samples.images, expected.drawn)
    assert len(samples) == N - len(samples.not_finite)


def test_the_parts_of_an_iterator_make_up_the_whole(
    explosive: glowserve.Client, explosive_engine: Engine
) -> None:
    expected = attempts(explosive_engine, 2, N)
    parts = list(explosive.iter_samples(N, seed=2))
    for part in parts:
        assert len(part.images) == len(part.indices)
    assert [index for part in parts for index in part.indices.tolist()] == expected.indices
    assert [index for part in parts for index in part.not_finite.tolist()] == expected.not_finite
    np.testing.assert_array_equal(np.concatenate([part.images for part in parts]), expected.drawn)


def test_a_call_without_one_finite_sample_raises_after_its_parts(explosive: glowserve.Client) -> None:
    received = []
    with pytest.raises(glowserve.RequestError, match="not one sample of 40 is finite") as caught:
        received.extend(explosive.iter_samples(40, seed=0, temperature=3e38))
    assert caught.value.reason == "NOT_FINITE"
    assert [index for part in received for index in part.not_finite.tolist()] == list(range(40))
    assert {part.images.shape for part in received} == {(0, 8, 8, 1)}
    with pytest.raises(glowserve.RequestError, match="not one sample of 1 is finite"):
        explosive.sample(1, seed=0, temperature=3e38)

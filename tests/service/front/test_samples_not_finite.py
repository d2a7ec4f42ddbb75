"""Samples that are not finite on their way through a server: drawn again, then left out, while the others arrive."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

from glowserve.runtime.engine import Engine
from glowserve.v1 import glow_service_pb2 as pb
from tests.attempts import attempts
from tests.servers import RunServer
from tests.service.bundles import with_randomness
from tests.service.front.open_inference.requests import output, sample_request
from tests.service.log_records import records_of
from tests.service.marks import reads_call_lines
from tests.service.metrics import value
from tests.service.stubs import Stubs, connect
from tests.service.wire import images_of, refusal

N = 100
FORMATS = [pb.IMAGE_FORMAT_PNG, pb.IMAGE_FORMAT_RAW]


@pytest.fixture(scope="module")
def explosive(run_server: RunServer, explosive_repository: Path) -> Iterator[tuple[Server, Stubs]]:
    """A server whose samples are not finite in about half of the attempts."""
    with run_server(repository=explosive_repository) as server, connect(server) as stubs:
        yield server, stubs


def drawn(stubs: Stubs, **fields: Any) -> tuple[dict[int, bytes], list[int]]:
    """The samples of a call by their indices, and the indices of those without an image."""
    images, not_finite = {}, []
    for response in stubs.glow.Sample(pb.SampleRequest(**fields)):
        not_finite += response.not_finite
        if response.images.encoded.data or response.images.tensor.data:
            for i, image in enumerate(images_of(response.images)):
                images[response.first_index + i] = image.tobytes()
    return images, not_finite


@pytest.mark.parametrize("form", FORMATS)
def test_the_others_of_a_call_arrive_and_those_without_an_image_are_listed(
    explosive: tuple[Server, Stubs], explosive_engine: Engine, form: pb.ImageFormat
) -> None:
    expected = attempts(explosive_engine, 7, N)
    assert 3 < len(expected.not_finite) < N / 3
    images, not_finite = drawn(explosive[1], n=N, seed=7, format=form)
    assert not_finite == expected.not_finite
    assert list(images) == expected.indices
    assert images == {i: expected.images[i].tobytes() for i in expected.indices}


def test_a_sample_is_the_same_in_any_call(
    run_server: RunServer, explosive: tuple[Server, Stubs], explosive_repository: Path
) -> None:
    """Alone, with fewer, among other calls, and in batches of another size."""
    images, not_finite = drawn(explosive[1], n=N, seed=7)

    def check(stubs: Stubs, n: int) -> None:
        some, missing = drawn(stubs, n=n, seed=7)
        assert some == {index: image for index, image in images.items() if index < n}
        assert missing == [index for index in not_finite if index < n]

    sizes = [n for n in (1, 2, 31, 33, 70) if n > min(images)]
    for n in sizes:
        check(explosive[1], n)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: check(explosive[1], n), 4 * sizes))
    with run_server(repository=explosive_repository, max_batch_size=5) as server, connect(server) as stubs:
        check(stubs, N)


def test_a_bundle_of_randomness_1_keeps_its_one_attempt_and_the_others_arrive(
    run_server: RunServer, explosive_repository: Path, explosive_engine: Engine, tmp_path: Path
) -> None:
    with_randomness(explosive_repository / "digits" / "1", tmp_path / "digits" / "1", 1)
    expected = attempts(explosive_engine, 7, N, most=1)
    with run_server(repository=tmp_path) as server, connect(server) as stubs:
        images, not_finite = drawn(stubs, n=N, seed=7)
        assert value(server, "redrawn_samples_total", model="digits") == 0
    assert not_finite == expected.not_finite
    assert images == {i: expected.images[i].tobytes() for i in expected.indices}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize(("n", "temperature"), [(1, 3e38), (40, 3e38)])
def test_a_call_without_one_finite_sample_fails_after_its_messages(
    explosive: tuple[Server, Stubs], n: int, temperature: float, form: pb.ImageFormat
) -> None:
    received: list[pb.SampleResponse] = []
    request = pb.SampleRequest(n=n, seed=0, temperature=temperature, format=form)
    code, message = refusal(lambda: received.extend(explosive[1].glow.Sample(request)))
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert message.startswith(f"temperature is {temperature:g}: not one sample of {n} is finite; lower the")
    assert [index for response in received for index in response.not_finite] == list(range(n))
    for response in received:
        assert not response.images.encoded.data
        assert not response.images.tensor.data


@reads_call_lines
def test_attempts_and_samples_without_an_image_are_counted_and_logged_once_a_call(
    explosive: tuple[Server, Stubs], explosive_engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    server, stubs = explosive
    labels: dict[str, dict[str, str]] = {
        "redrawn_samples_total": {"model": "digits"},
        "not_finite_images_total": {"model": "digits", "method": "Sample"},
    }
    before = [value(server, name, **each) for name, each in labels.items()]
    expected = attempts(explosive_engine, 7, N)
    with caplog.at_level(logging.INFO, "glowserve_service"):
        drawn(stubs, n=N, seed=7)
    after = [value(server, name, **each) for name, each in labels.items()]
    missing = len(expected.not_finite)
    assert [now - then for now, then in zip(after, before, strict=True)] == [expected.redrawn, missing]
    (record,) = [each for each in records_of(caplog) if "Sample of digits" in each.getMessage()]
    assert f": OK, {N} images ({missing} not finite) in " in record.getMessage()
    assert record.msg.fields["not_finite"] == missing  # type: ignore[attr-defined]


# The Open Inference Protocol


def seeds(engine: Engine) -> tuple[list[int], list[bool]]:
    """Seeds of which some have a first sample and others have none, and which have one."""
    return list(range(40)), [bool(attempts(engine, seed, 1).finite[0]) for seed in range(40)]


def test_a_request_that_names_the_output_finite_gets_the_other_rows(
    explosive: tuple[Server, Stubs], explosive_engine: Engine
) -> None:
    server, stubs = explosive
    rows, finite = seeds(explosive_engine)
    assert 0 < sum(finite) < len(finite)
    request = sample_request(rows, [1.0] * len(rows))
    for name in ("image", "finite"):
        request.outputs.add(name=name)
    (streamed,) = stubs.inference.ModelStreamInfer(iter([request]))
    assert not streamed.error_message
    for response in (stubs.inference.ModelInfer(request), streamed.infer_response):
        assert output(response, "finite").tolist() == finite
        images = output(response, "image")
        for seed, image, good in zip(rows, images, finite, strict=True):
            np.testing.assert_array_equal(image, attempts(explosive_engine, seed, 1).images[0])
            assert good or not image.any()
    counted = {"model": "digits", "method": "ModelInfer"}
    assert value(server, "not_finite_images_total", **counted) == len(finite) - sum(finite)


@pytest.mark.parametrize("outputs", [[], ["image"]])
def test_a_request_that_does_not_is_refused_and_the_row_is_named(
    explosive: tuple[Server, Stubs], explosive_engine: Engine, outputs: list[str]
) -> None:
    stubs = explosive[1]
    rows, finite = seeds(explosive_engine)
    request = sample_request(rows, [1.0] * len(rows))
    for name in outputs:
        request.outputs.add(name=name)
    message = (
        f"input 'temperature': row {finite.index(False)} does not decode to a finite image; lower it, or request the "
        "output 'finite', which says which rows do"
    )
    assert refusal(lambda: stubs.inference.ModelInfer(request)) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        message,
    )
    (streamed,) = stubs.inference.ModelStreamInfer(iter([request]))
    assert (streamed.error_message, len(streamed.infer_response.outputs)) == (message, 0)


def test_rows_that_are_all_finite_need_no_output_named(
    explosive: tuple[Server, Stubs], explosive_engine: Engine
) -> None:
    rows, finite = seeds(explosive_engine)
    good = [seed for seed, each in zip(rows, finite, strict=True) if each]
    response = explosive[1].inference.ModelInfer(sample_request(good, [1.0] * len(good)))
    assert output(response, "finite").tolist() == [True] * len(good)
    assert [(each.name, each.datatype) for each in response.outputs] == [
        ("image", "UINT8"),
        ("finite", "BOOL"),
    ]

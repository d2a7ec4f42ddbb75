"""GlowService.Explain: what is on the wire, what is counted, and images that are not finite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
from glowserve_service.server import Server

import glowserve
from glowserve.images import UInt8Array
from glowserve.messages import float_array
from glowserve.runtime.engine import Engine
from glowserve.runtime.explanation import Explainer
from glowserve.runtime.randomness import dequantization_noise
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1 import tensor_pb2
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.servers import RunServer
from tests.service.bundles import BoolArray, explode
from tests.service.engines import held
from tests.service.marks import reads_call_lines
from tests.service.metrics import ended, has_series, queue_length, value
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import raw, refusal, wait_for


@pytest.fixture
def fresh(run_server: RunServer) -> Iterator[tuple[Server, Stubs]]:
    """A server that has answered no call."""
    limits = {"instances": 1, "max_batch_size": 8, "max_queue_size": 16, "max_images_per_call": 16}
    with run_server(**limits) as server, connect(server) as stubs:
        yield server, stubs


def test_the_answer_has_a_number_for_each_pixel_and_the_parts_of_each_image(
    stub: GlowServiceStub, digits: UInt8Array
) -> None:
    response = stub.Explain(pb.ExplainRequest(images=raw(digits[:3])))
    assert (response.model.name, response.model.version) == ("digits", 1)
    assert response.deviations.dtype == tensor_pb2.DATA_TYPE_FLOAT32
    assert list(response.deviations.shape) == [3, 8, 8]
    assert len(response.deviations.data) == 4 * 3 * 64
    assert len(response.explanations) == 3
    for each in response.explanations:
        assert each.finite
        assert {part.name for part in each.parts} <= {field.name for field in pb.ImageScore.DESCRIPTOR.fields}
        assert all((part.level > 0) == part.name.startswith("log_") for part in each.parts)


def test_the_answer_does_not_depend_on_the_batch(stub: GlowServiceStub, digits: UInt8Array) -> None:
    together = stub.Explain(pb.ExplainRequest(images=raw(digits[:70])))  # three batches
    alone = stub.Explain(pb.ExplainRequest(images=raw(digits[66:67])))
    np.testing.assert_allclose(
        float_array(together.deviations)[66], float_array(alone.deviations)[0], atol=2e-3
    )
    first, second = together.explanations[66].parts[0], alone.explanations[0].parts[0]
    assert (first.name, first.level) == (second.name, second.level)
    assert first.deviation == pytest.approx(second.deviation, rel=1e-3)


@reads_call_lines
def test_a_call_is_counted_like_a_score(
    fresh: tuple[Server, Stubs], digits: UInt8Array, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server, stubs = fresh
    assert has_series(server, "queue_length", model="digits", direction="explain")
    assert has_series(server, "batches_total", model="digits", direction="explain", reason="full")
    stubs.glow.Explain(pb.ExplainRequest(images=raw(digits[:12])))
    assert ended(server, "Explain", "OK") == 1
    for direction, batches in (("forward", 2), ("explain", 2), ("reverse", 0)):
        assert value(server, "batch_size_count", model="digits", direction=direction) == batches
        images = value(server, "batch_size_sum", model="digits", direction=direction)
        assert images == (12 if batches else 0)
    for stage in ("preparation", "serialization"):
        assert value(server, f"{stage}_seconds_count", model="digits", method="Explain") == 1
    # It watches the scores that callers ask for: images that are explained have been chosen.
    assert value(server, "bits_per_dim_count", model="digits", version="1") == 0
    (line,) = [record.message for record in caplog.records if "Explain" in record.message]
    assert "Explain of digits: OK, 12 images in " in line


def test_it_is_refused_like_a_score_when_the_queue_is_full(
    fresh: tuple[Server, Stubs], digits: UInt8Array
) -> None:
    server, stubs = fresh
    stubs.glow.Explain(pb.ExplainRequest(images=raw(digits[:1])))
    with held() as go_on:
        running = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:16])))
        wait_for(lambda: queue_length(server) == 8)
        waiting = stubs.glow.Score.future(pb.ScoreRequest(images=raw(digits[:8])))
        wait_for(lambda: queue_length(server) == 16)
        code, message = refusal(lambda: stubs.glow.Explain(pb.ExplainRequest(images=raw(digits[:16]))))
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert message.startswith("16 images wait already and 16 more exceed the queue")
        go_on.set()
        assert [len(call.result(60).scores) for call in (running, waiting)] == [16, 8]
    assert len(stubs.glow.Explain(pb.ExplainRequest(images=raw(digits[:16]))).explanations) == 16


def test_a_third_graph_that_hangs_is_noticed_and_one_that_fails_leaves_the_model_ready(
    fresh: tuple[Server, Stubs], digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, stubs = fresh
    request = pb.ExplainRequest(images=raw(digits[:3]))
    expected = stubs.glow.Explain(request)
    (model,) = server.manager._models
    with held("explain"):
        call = stubs.glow.Explain.future(request)
        wait_for(lambda: model.health.batch_seconds > 0.05)
    assert call.result(60) == expected

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "explain", fail)
        code, message = refusal(lambda: stubs.glow.Explain(request))
    assert (code, message) == (grpc.StatusCode.INTERNAL, "internal error; it is in the server's log")
    assert stubs.status("digits") == SERVING
    assert stubs.glow.Explain(request) == expected


def test_a_malformed_call_opens_no_graph(fresh: tuple[Server, Stubs], digits: UInt8Array) -> None:
    server, stubs = fresh
    for images in (None, raw(digits[:17]), raw(digits[:2, :4])):
        code, message = refusal(lambda images=images: stubs.glow.Explain(pb.ExplainRequest(images=images)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert message.startswith("images")
    (model,) = server.manager._models
    assert model.opening._thread is None


@pytest.fixture
def far_away(
    repository: Path, tmp_path: Path, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> tuple[Path, list[bool]]:
    """A repository whose model leaves float32 for some of the digits, and for which it does not."""
    for module in ("glowserve_service.models.loading", "glowserve.client.transports.embedded"):
        monkeypatch.setattr(f"{module}.check_canary", lambda _engine, _bundle: None)
    monkeypatch.setattr(Explainer, "_check_sum", lambda _explainer: None)  # of the canary
    noise = dequantization_noise(0, digits[:40])

    def finite(engine: Engine) -> BoolArray:
        found: BoolArray = np.isfinite(engine.forward(digits[:40], noise).log_likelihood)
        return found

    source, target = repository / "digits" / "1", tmp_path / "digits" / "1"
    stay = explode(source, target, ("forward.onnx", "explain.onnx"), finite, least=0.13, most=0.87)
    return tmp_path, stay.tolist()


def test_an_image_that_is_not_finite_has_no_numbers_is_counted_and_harms_no_other(
    run_server: RunServer, far_away: tuple[Path, list[bool]], digits: UInt8Array
) -> None:
    path, finite = far_away
    with run_server(repository=path) as server, connect(server) as stubs:
        response = stubs.glow.Explain(pb.ExplainRequest(images=raw(digits[:40])))
        counted = value(server, "not_finite_images_total", model="digits", method="Explain")
        assert counted == finite.count(False)
    deviations = float_array(response.deviations)
    assert [each.finite for each in response.explanations] == finite
    for i, each in enumerate(response.explanations):
        assert np.isnan(deviations[i]).all() == (not finite[i])
        bits = next(part for part in each.parts if part.name == "bits_per_dim")
        assert (bits.deviation == np.inf) == (not finite[i])
        if finite[i]:
            assert np.isfinite(deviations[i]).all()
        else:
            assert not np.isfinite(each.parts[0].deviation)
    with glowserve.open(path / "digits") as client:
        here = client.explain(digits[:40])
    np.testing.assert_allclose(here.deviations, deviations, rtol=1e-2, atol=1e-2)
    assert here.finite.tolist() == finite

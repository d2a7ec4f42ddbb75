"""Models come, go and fail while the service runs, and no caller notices more than it must."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from glowserve_service.models.models import ServedModel
from glowserve_service.server import Server
from grpc_health.v1 import health_pb2, health_pb2_grpc

from glowserve.images import UInt8Array
from glowserve.messages import latent_tensor
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.oip.grpc_service_pb2_grpc import GRPCInferenceServiceStub
from glowserve.runtime.config import RuntimeConfig
from glowserve.runtime.engine import Engine
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import open_bundle
from glowserve.v1 import glow_service_pb2 as pb
from glowserve.v1.glow_service_pb2_grpc import GlowServiceStub
from tests.service.bundles import make_other, scale
from tests.service.wire import raw, refusal, wait_for

RunServer = Callable[..., Any]
Float64Array = npt.NDArray[np.float64]

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
CALLERS = 8
POLL = {"poll_seconds": 0.1, "canary_seconds": 0}
ON_REQUEST = {"poll_seconds": 0, "canary_seconds": 0, "admin": "on"}


@pytest.fixture
def models(repository: Path, tmp_path: Path) -> Path:
    """A repository of one's own, with version 1 of the digits."""
    shutil.copytree(repository / "digits" / "1", tmp_path / "models" / "digits" / "1")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def second(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound bundle that gives other scores and other samples than the digits' version 1."""
    target = tmp_path_factory.mktemp("second") / "digits" / "2"
    make_other(repository / "digits" / "1", target, log_det=1.1, bins=0.75)
    return target


def publish(source: Path, target: Path) -> None:
    """As the exporter does: the folder appears as a whole."""
    staging = target.parent / f".staging-{target.name}"
    shutil.copytree(source, staging)
    staging.rename(target)


def damage(version: Path) -> None:
    """Flips a bit of a graph."""
    data = bytearray((version / "forward.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (version / "forward.onnx").write_bytes(data)


class Asked:
    """A server, and stubs to ask it."""

    def __init__(self, server: Server, channel: grpc.Channel) -> None:
        self.server = server
        self.glow = GlowServiceStub(channel)
        self.oip = GRPCInferenceServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)
        self.channel = channel

    def check(self, name: str) -> Any:
        return self.health.Check(health_pb2.HealthCheckRequest(service=name)).status

    def served(self) -> list[tuple[str, int]]:
        listed = self.glow.ListModels(pb.ListModelsRequest()).models
        return [(each.model.name, each.model.version) for each in listed]

    def not_served(self) -> list[tuple[str, int, str]]:
        listed = self.glow.ListModels(pb.ListModelsRequest()).not_served
        return [
            (each.model.name, each.model.version, pb.ModelState.Name(each.state).removeprefix("MODEL_STATE_"))
            for each in listed
        ]

    def reason(self) -> str:
        (each,) = self.glow.ListModels(pb.ListModelsRequest()).not_served
        return str(each.reason)

    def version(self, name: str = "digits", version: int = 0) -> int:
        """The version that answers."""
        spec = pb.ModelSpec(name=name, version=version)
        latents = latent_tensor(np.zeros((1, 64), np.float32))
        return int(self.glow.Decode(pb.DecodeRequest(model=spec, latents=latents)).model.version)

    def load(self, name: str = "digits") -> list[int]:
        answer = self.glow.LoadModel(pb.LoadModelRequest(name=name))
        return [each.model.version for each in answer.models]

    def unload(self, name: str = "digits") -> None:
        self.glow.UnloadModel(pb.UnloadModelRequest(name=name))

    def value(self, name: str, **labels: str) -> float | None:
        return self.server.metrics.registry.get_sample_value(f"glowserve_{name}", labels)

    def model(self, name: str = "digits", version: int = 0) -> ServedModel:
        return self.server._manager._models.find(name, version)


@pytest.fixture
def asked(run_server: RunServer) -> Callable[..., Any]:
    """`with asked(repository=...) as service`."""

    @contextmanager
    def run(**settings: Any) -> Iterator[Asked]:
        with (
            run_server(**settings) as server,
            grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel,
        ):
            yield Asked(server, channel)

    return run


# A new version


def test_a_new_version_is_swapped_in_under_load_as_a_pair_and_no_call_fails(
    asked: Callable[..., Any], models: Path, second: Path, digits: UInt8Array, capsys: Any
) -> None:
    """Every answer is wholly the old version's or wholly the new one's; the old engine is gone afterwards."""
    score = pb.ScoreRequest(images=raw(digits[:3]))
    sample = pb.SampleRequest(n=2, seed=5, temperature=0.0, format="IMAGE_FORMAT_RAW")
    seen: list[tuple[float, float, int, Any]] = []
    enough = threading.Event()

    def scored(stub: GlowServiceStub) -> tuple[int, Any]:
        answer = stub.Score(score)
        return answer.model.version, ("scores", *(each.log_likelihood for each in answer.scores))

    def drawn(stub: GlowServiceStub) -> tuple[int, Any]:
        (answer,) = stub.Sample(sample)
        return answer.model.version, ("samples", answer.images.tensor.data)

    def ask(call: Callable[[GlowServiceStub], tuple[int, Any]]) -> None:
        options = [("grpc.use_local_subchannel_pool", 1)]
        with grpc.insecure_channel(f"127.0.0.1:{service.server.port}", options) as channel:
            stub = GlowServiceStub(channel)
            while not enough.is_set():
                began = time.monotonic()
                version, answer = call(stub)
                seen.append((began, time.monotonic() - began, version, answer))

    with asked(repository=models, **POLL) as service, ThreadPoolExecutor(CALLERS) as pool:
        old = weakref.ref(service.model()._engine)
        callers = [pool.submit(ask, drawn if i < 3 else scored) for i in range(CALLERS)]
        try:
            wait_for(lambda: len(seen) > 300)
            published = time.monotonic()
            publish(second, models / "digits" / "2")
            wait_for(lambda: service.served() == [("digits", 2)])
            swapped = time.monotonic()
            more = len(seen) + 300
            wait_for(lambda: len(seen) > more)
        finally:
            enough.set()
        for caller in callers:
            caller.result()  # raises what the call raised
        wait_for(lambda: old() is None)
        assert service.value("model_info", **_info("1")) is None
        assert service.value("model_info", **_info("2")) == 1
    answers = {version: {answer for _, _, of, answer in seen if of == version} for version in (1, 2)}
    assert {version: len(found) for version, found in answers.items()} == {1: 2, 2: 2}  # scores and samples
    assert not answers[1] & answers[2]
    usual = [took for began, took, _, _ in seen if began < published - 0.05]
    around = [took for began, took, _, _ in seen if published <= began <= swapped]
    with capsys.disabled():
        print(
            f"\n  swap: {len(around)} calls in {swapped - published:.2f} s, "
            f"p99 {1000 * np.quantile(around, 0.99):.1f} ms, worst {1000 * max(around):.1f} ms; "
            f"before: p99 {1000 * np.quantile(usual, 0.99):.1f} ms, worst {1000 * max(usual):.1f} ms"
        )


def _info(version: str) -> dict[str, str]:
    names = {"device": "cpu", "provider": "CPUExecutionProvider", "precision": "fp32"}
    return {"model": "digits", "version": version, **names}


def test_a_stream_that_has_begun_ends_with_the_version_it_began_with(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    with asked(repository=models, max_batch_size=2, **ON_REQUEST) as service:
        old = weakref.ref(service.model()._engine)
        stream = service.glow.Sample(pb.SampleRequest(n=4000, temperature=0.0))
        first = next(stream)
        publish(second, models / "digits" / "2")
        assert service.load() == [2]
        assert service.version() == 2
        assert old() is not None
        assert {first.model.version, *(answer.model.version for answer in stream)} == {1}
        wait_for(lambda: old() is None)


def test_the_newest_versions_are_served_side_by_side(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    publish(models / "digits" / "1", models / "digits" / "3")
    publish(second, models / "digits" / "2")
    with asked(repository=models, versions="2", **ON_REQUEST) as service:
        assert service.served() == [("digits", 2), ("digits", 3)]
        assert [service.version(version=asked_for) for asked_for in (0, 2, 3)] == [3, 2, 3]
        assert refusal(lambda: service.version(version=1)) == (
            grpc.StatusCode.NOT_FOUND,
            "model.version 1 of 'digits' is not served; served are digits version 2, digits version 3",
        )
        assert service.oip.ModelMetadata(oip.ModelMetadataRequest(name="digits")).versions == ["2", "3"]
        index = service.oip.RepositoryIndex(oip.RepositoryIndexRequest()).models
        assert [(each.name, each.version, each.state) for each in index] == [
            (name, version, "READY") for version in ("2", "3") for name in ("digits", "digits.sample")
        ]
        publish(second, models / "digits" / "10")
        assert service.load() == [3, 10]


def test_versions_that_are_given_are_served_and_no_others(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    publish(second, models / "digits" / "2")
    publish(second, models / "faces" / "7")
    with asked(repository=models, versions="digits=1", **ON_REQUEST) as service:
        assert service.served() == [("digits", 1), ("faces", 7)]


def test_a_new_model_is_found_and_a_version_that_is_deleted_makes_way_for_the_one_before(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    publish(second, models / "digits" / "2")
    with asked(repository=models, **POLL) as service:
        assert service.served() == [("digits", 2)]
        publish(second, models / "faces" / "7")
        wait_for(lambda: service.served() == [("digits", 2), ("faces", 7)])
        assert service.check("faces") == SERVING
        (models / "digits" / "2").rename(models / "digits" / ".trash")
        wait_for(lambda: service.served() == [("digits", 1), ("faces", 7)])
        shutil.rmtree(models)  # such as when a network's disk is gone for a while
        time.sleep(0.5)
        assert service.served() == [("digits", 1), ("faces", 7)]
        assert service.version() == 1


# A bad version


def test_a_corrupt_version_is_refused_and_the_old_one_goes_on(
    asked: Callable[..., Any], models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(models / "digits" / "1", tmp_path / "bad")
    damage(tmp_path / "bad")
    with asked(repository=models, **POLL) as service:
        publish(tmp_path / "bad", models / "digits" / "3")
        wait_for(lambda: service.not_served() == [("digits", 3, "REFUSED")])
        time.sleep(0.5)  # several looks
        assert service.served() == [("digits", 1)]
        assert service.version() == 1
        assert service.reason() == (
            "bundle digits/3: forward.onnx is not the file that was exported (its SHA-256 differs); "
            "export the model again"
        )
        assert service.value("model_loads_total", model="digits", outcome="refused") == 1
        assert service.value("model_loads_total", model="digits", outcome="loaded") == 1
        assert (service.check(""), service.check("digits")) == (SERVING, SERVING)
        index = service.oip.RepositoryIndex(oip.RepositoryIndexRequest()).models
        (bad,) = [each for each in index if each.version == "3"]
        assert (bad.state, bad.reason) == ("UNAVAILABLE", service.reason())
        ready = service.oip.RepositoryIndex(oip.RepositoryIndexRequest(ready=True)).models
        assert {each.version for each in ready} == {"1"}
        refusals = [record for record in caplog.records if "digits version 3 is refused" in record.message]
        assert [record.levelno for record in refusals] == [logging.ERROR]
        shutil.rmtree(models / "digits" / "3")
        wait_for(lambda: service.not_served() == [])


def test_a_version_that_computes_something_else_is_refused(asked: Callable[..., Any], models: Path) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    scale(models / "digits" / "2", "forward.onnx", "log_det_constant", 1.1)
    with asked(repository=models, **ON_REQUEST) as service:
        assert service.served() == [("digits", 1)]
        assert service.not_served() == [("digits", 2, "REFUSED")]
        assert "bundle digits/2: its canary has a log-likelihood of" in service.reason()


def test_a_version_is_served_in_the_end_however_slowly_its_files_arrive(
    asked: Callable[..., Any], models: Path, second: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Manifest first, graphs in pieces; each pause is longer than a look."""
    target = models / "digits" / "2"
    states = set()
    with asked(repository=models, **POLL) as service:
        target.mkdir()
        for name in ("manifest.json", "manifest.json.sha256", "reverse.onnx", "forward.onnx"):
            data = (second / name).read_bytes()
            with (target / name).open("wb") as file:
                for part in (data[: len(data) // 2], data[len(data) // 2 :]):
                    file.write(part)
                    file.flush()
                    time.sleep(0.15)
                    states |= set(service.not_served())
                    assert (service.served(), service.version()) in (([("digits", i)], i) for i in (1, 2))
        wait_for(lambda: service.served() == [("digits", 2)])
        assert ("digits", 2, "LOADING") in states
        assert service.not_served() == []


def test_a_bundle_that_is_replaced_in_its_place_is_taken_when_it_is_whole(
    asked: Callable[..., Any], models: Path, second: Path, digits: UInt8Array
) -> None:
    """What is served goes on while the files on the disk are half the old ones and half the new."""
    place, score = models / "digits" / "1", pb.ScoreRequest(images=raw(digits[:2]))
    with asked(repository=models, **POLL) as service:
        before = service.glow.Score(score).scores
        for name in ("forward.onnx", "manifest.json", "manifest.json.sha256"):
            shutil.copy(second / name, place / name)
        wait_for(lambda: service.not_served() == [("digits", 1, "REFUSED")])
        assert service.served() == [("digits", 1)]
        assert service.glow.Score(score).scores == before
        shutil.copy(second / "reverse.onnx", place / "reverse.onnx")
        wait_for(lambda: service.glow.Score(score).scores != before)
        assert service.served() == [("digits", 1)]
        wait_for(lambda: service.not_served() == [])
        assert service.value("model_info", **_info("1")) == 1


def test_a_bundle_that_changes_while_it_is_read_is_never_served_as_a_mixture(
    models: Path, second: Path
) -> None:
    """The manifest is the old one's, the graphs are the new one's."""
    bundle = open_bundle(models / "digits" / "1")
    for name in ("forward.onnx", "reverse.onnx", "manifest.json", "manifest.json.sha256"):
        shutil.copy(second / name, models / "digits" / "1" / name)
    with pytest.raises(BundleError, match=r"forward\.onnx is not the file that was exported"):
        Engine(bundle, RuntimeConfig(device="cpu"))


# At the start


def test_a_service_starts_with_the_old_version_if_the_newest_is_bad(
    asked: Callable[..., Any], models: Path
) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    damage(models / "digits" / "2")
    with asked(repository=models, **POLL) as service:
        assert service.served() == [("digits", 1)]
        assert service.not_served() == [("digits", 2, "REFUSED")]
        assert service.check("") == SERVING
        for name in ("forward.onnx", "reverse.onnx"):
            shutil.copy(models / "digits" / "1" / name, models / "digits" / "2" / name)
        wait_for(lambda: service.served() == [("digits", 2)])


def test_a_service_does_not_start_if_no_version_is_good(run_server: RunServer, models: Path) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    for version in ("1", "2"):
        damage(models / "digits" / version)
    with pytest.raises(BundleError, match=r"digits/2: forward\.onnx is not"), run_server(repository=models):
        pass


def test_a_service_does_not_start_if_no_version_is_wanted(run_server: RunServer, models: Path) -> None:
    with (
        pytest.raises(BundleError, match=r"versions is 'digits=7', and repository .* has none of them"),
        run_server(repository=models, versions="digits=7"),
    ):
        pass


# On request


def test_models_are_loaded_and_unloaded_on_request(
    asked: Callable[..., Any], models: Path, second: Path, tmp_path: Path
) -> None:
    with asked(repository=models, **ON_REQUEST) as service:
        publish(second, models / "digits" / "2")
        publish(second, models / "faces" / "1")
        time.sleep(0.3)
        assert service.served() == [("digits", 1)]  # nobody looks by themselves
        assert service.load() == [2]
        assert service.load() == [2]
        assert service.load("faces") == [1]
        service.unload()
        service.unload()
        assert service.served() == [("faces", 1)]
        assert refusal(service.version) == (
            grpc.StatusCode.NOT_FOUND,
            "model.name 'digits' is not served; served are faces version 1",
        )
        assert (service.check(""), service.check("digits"), service.check("faces")) == (
            SERVING,
            NOT_SERVING,
            SERVING,
        )
        assert service.value("queue_length", model="digits", direction="forward") is None
        service.unload("faces")
        assert service.check("") == NOT_SERVING
        assert refusal(lambda: service.version(""))[0] is grpc.StatusCode.NOT_FOUND
        assert not service.oip.ServerReady(oip.ServerReadyRequest()).ready
        assert service.load() == [2]
        assert (service.check(""), service.check("digits")) == (SERVING, SERVING)
        assert service.value("queue_length", model="digits", direction="forward") == 0


def test_what_was_unloaded_is_not_found_again_by_itself(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    with asked(repository=models, admin="on", **POLL) as service:
        service.unload()
        publish(second, models / "digits" / "2")
        time.sleep(0.5)
        assert service.served() == []
        assert service.load() == [2]


def test_a_version_that_is_refused_on_request_is_told_and_the_old_one_goes_on(
    asked: Callable[..., Any], models: Path
) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    damage(models / "digits" / "2")
    with asked(repository=models, **ON_REQUEST) as service:
        for _ in range(2):
            code, sentence = refusal(service.load)
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert sentence.startswith("bundle digits/2: forward.onnx is not the file that was exported")
        assert service.served() == [("digits", 1)]
        assert service.value("model_loads_total", model="digits", outcome="refused") == 3


@pytest.mark.parametrize("name", ["", "nobody", "../models/digits", "digits/1", ".", "..", "/", "digits\0"])
def test_a_name_that_no_folder_has_is_not_found(asked: Callable[..., Any], models: Path, name: str) -> None:
    with asked(repository=models / ".." / "models", **ON_REQUEST) as service:
        code, sentence = refusal(lambda: service.load(name))
        assert code is grpc.StatusCode.NOT_FOUND
        assert sentence == f"model {name!r} is not in the repository; there are digits"
        assert refusal(lambda: service.unload(name))[0] is grpc.StatusCode.NOT_FOUND


def test_tritons_calls_load_and_unload_too(asked: Callable[..., Any], models: Path, second: Path) -> None:
    with asked(repository=models, **ON_REQUEST) as service:
        publish(second, models / "digits" / "2")
        service.oip.RepositoryModelLoad(oip.RepositoryModelLoadRequest(model_name="digits"))
        assert service.version() == 2
        service.oip.RepositoryModelUnload(oip.RepositoryModelUnloadRequest(model_name="digits"))
        assert service.served() == []
        assert not service.oip.ModelReady(oip.ModelReadyRequest(name="digits")).ready


def test_calls_that_change_models_are_off_unless_allowed(asked: Callable[..., Any], models: Path) -> None:
    with asked(repository=models, **ON_REQUEST | {"admin": "off"}) as service:
        load = oip.RepositoryModelLoadRequest(model_name="digits")
        unload = oip.RepositoryModelUnloadRequest(model_name="digits")
        for call in (
            service.load,
            service.unload,
            lambda: service.oip.RepositoryModelLoad(load),
            lambda: service.oip.RepositoryModelUnload(unload),
        ):
            code, sentence = refusal(call)
            assert code is grpc.StatusCode.PERMISSION_DENIED
            assert "`glowserve serve --admin on` allows them" in sentence
        assert service.version() == 1


def test_a_load_goes_on_where_its_caller_gives_up(
    asked: Callable[..., Any], models: Path, second: Path
) -> None:
    with asked(repository=models, versions="9", **ON_REQUEST) as service:
        for version in range(2, 10):
            publish(second, models / "digits" / str(version))
        request = pb.LoadModelRequest(name="digits")
        code, _ = refusal(lambda: service.glow.LoadModel(request, timeout=0.02))
        assert code is grpc.StatusCode.DEADLINE_EXCEEDED
        assert service.served() == [("digits", 1)]
        wait_for(lambda: len(service.served()) == 9)


# Engines that fail


@contextmanager
def failing(model: ServedModel, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The sessions of an engine, and nothing of the service, fail."""

    class Failing:
        def run(self, names: Any, inputs: Any) -> Any:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with monkeypatch.context() as patch:
        patch.setattr(model._engine, "_forward", Failing())
        yield


def test_a_canary_that_fails_on_its_interval_is_seen_in_health_and_so_is_its_recovery(
    asked: Callable[..., Any], models: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(second, models / "faces" / "1")
    with asked(repository=models, poll_seconds=0, canary_seconds=0.1) as service:
        watches = {
            name: service.health.Watch(health_pb2.HealthCheckRequest(service=name)) for name in ("", "digits")
        }
        assert [next(watch).status for watch in watches.values()] == [SERVING, SERVING]
        with failing(service.model("digits"), monkeypatch):
            assert [next(watch).status for watch in watches.values()] == [NOT_SERVING, NOT_SERVING]
            assert service.check("glowserve.v1.GlowService") == NOT_SERVING
            assert service.check("faces") == SERVING
            assert service.value("model_ready", model="digits", version="1") == 0
            assert service.value("model_ready", model="faces", version="1") == 1
            assert (service.value("canary_checks_total", model="digits", outcome="failed") or 0) >= 1
            listed = service.glow.ListModels(pb.ListModelsRequest()).models
            assert [pb.ModelState.Name(each.state) for each in listed] == [
                "MODEL_STATE_FAILING",
                "MODEL_STATE_SERVING",
            ]
            assert listed[0].reason == "its engine failed on the canary; the error is in the server's log"
            assert not service.oip.ServerReady(oip.ServerReadyRequest()).ready
            assert not service.oip.ModelReady(oip.ModelReadyRequest(name="digits")).ready
            assert service.oip.ModelReady(oip.ModelReadyRequest(name="faces")).ready
        assert [next(watch).status for watch in watches.values()] == [SERVING, SERVING]
        assert service.value("model_ready", model="digits", version="1") == 1
        assert service.glow.ListModels(pb.ListModelsRequest()).models[0].reason == ""


def test_a_canary_that_ends_as_it_is_cancelled_is_cancelled(
    asked: Callable[..., Any], models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else they would go on for ever, and a server that stops waits for their end."""

    async def both_at_once(model: ServedModel) -> bool:
        ends = asyncio.get_running_loop().create_future()
        with monkeypatch.context() as patch:
            patch.setattr(asyncio, "to_thread", lambda *_: ends)
            task = asyncio.create_task(model.try_canary())
            await asyncio.sleep(0.1)
            ends.set_result(None)
            task.cancel()
            await asyncio.wait([task])
        return task.cancelled()

    with asked(repository=models, **ON_REQUEST) as service:
        model = service.model()
        assert asyncio.run_coroutine_threadsafe(both_at_once(model), model.condition._loop).result(60)


def test_an_engine_that_computes_something_else_is_found_by_its_canary(
    asked: Callable[..., Any], models: Path, second: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Engine(open_bundle(second), RuntimeConfig(device="cpu", threads=1))
    with asked(repository=models, poll_seconds=0, canary_seconds=0.1) as service:
        with monkeypatch.context() as patch:
            patch.setattr(service.model()._engine, "_forward", other._forward)
            wait_for(lambda: service.check("digits") == NOT_SERVING)
            (listed,) = service.glow.ListModels(pb.ListModelsRequest()).models
            assert listed.reason.startswith("bundle digits/1: its canary has a log-likelihood of")
        wait_for(lambda: service.check("digits") == SERVING)


def test_an_engine_that_fails_in_a_batch_is_not_ready_at_once(
    asked: Callable[..., Any], models: Path, digits: UInt8Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    with asked(repository=models, **ON_REQUEST) as service:
        score = pb.ScoreRequest(images=raw(digits[:1]))
        with failing(service.model(), monkeypatch):
            assert refusal(lambda: service.glow.Score(score)) == (
                grpc.StatusCode.INTERNAL,
                "internal error; it is in the server's log",
            )
            wait_for(lambda: service.check("") == NOT_SERVING)
        (listed,) = service.glow.ListModels(pb.ListModelsRequest()).models
        assert listed.reason == "its engine failed in a batch; the error is in the server's log"
        # Without a canary's interval it is made ready by loading it again, here in another version.
        publish(models / "digits" / "1", models / "digits" / "2")
        assert service.load() == [2]
        assert service.check("") == SERVING


def test_what_callers_do_wrong_does_not_make_a_model_unready(
    asked: Callable[..., Any], models: Path, digits: UInt8Array
) -> None:
    with asked(repository=models, **ON_REQUEST) as service:
        for request in (pb.ScoreRequest(), pb.ScoreRequest(images=raw(digits[:1, :4]))):
            assert refusal(lambda request=request: service.glow.Score(request))[0] is (
                grpc.StatusCode.INVALID_ARGUMENT
            )
        huge = latent_tensor(np.full((1, 64), 3e38, np.float32))
        assert refusal(lambda: service.glow.Decode(pb.DecodeRequest(latents=huge)))[0] is (
            grpc.StatusCode.FAILED_PRECONDITION
        )
        assert service.check("") == SERVING


# Health


def test_health_lists_services_and_models(asked: Callable[..., Any], models: Path, second: Path) -> None:
    publish(second, models / "faces" / "1")
    with asked(repository=models, **ON_REQUEST) as service:
        service.unload("faces")
        ask = service.channel.unary_unary("/grpc.health.v1.Health/List")
        assert statuses(ask(b"")) == {
            "": SERVING,
            "glowserve.v1.GlowService": SERVING,
            "inference.GRPCInferenceService": SERVING,
            "digits": SERVING,
            "faces": NOT_SERVING,
        }
        assert refusal(lambda: service.check("nobody"))[0] is grpc.StatusCode.NOT_FOUND


def statuses(data: bytes) -> dict[str, int]:
    """Reads a HealthListResponse with short names: entries of field 1, each {1: name, 2: {1: status}}."""
    found = {}
    while data:
        assert data[0] == 0x0A
        entry, data = data[2 : 2 + data[1]], data[2 + data[1] :]
        name, value = entry[2 : 2 + entry[1]], entry[2 + entry[1] :]
        assert (entry[0], value[:3]) == (0x0A, b"\x12\x02\x08")
        found[name.decode()] = value[3]
    return found


def test_a_watch_hears_of_changes_alone(asked: Callable[..., Any], models: Path, second: Path) -> None:
    publish(second, models / "faces" / "1")
    with asked(repository=models, **ON_REQUEST) as service:
        watch = service.health.Watch(health_pb2.HealthCheckRequest(service="digits"))
        assert next(watch).status == SERVING
        service.unload("faces")
        service.load("faces")
        service.unload("digits")
        assert next(watch).status == NOT_SERVING
        service.load("digits")
        assert next(watch).status == SERVING

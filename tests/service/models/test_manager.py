"""The service follows its repository: new versions, version policies, bundles that are replaced, and the start."""

from __future__ import annotations

import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from glowserve.images import UInt8Array
from glowserve.oip import grpc_service_pb2 as oip
from glowserve.runtime.errors import BundleError
from glowserve.v1 import glow_service_pb2 as pb
from tests.servers import RunServer
from tests.service.log_records import records_of
from tests.service.models.running import ON_REQUEST, POLL, RunService, damage, publish
from tests.service.stubs import SERVING, Stubs, connect
from tests.service.wire import raw, refusal, wait_for

CALLERS = 8

Answer = tuple[object, ...]
"""The version that answered, and its scores or samples."""


# A new version


def test_a_new_version_replaces_the_old_one_under_load_and_no_call_fails(
    run_service: RunService, models: Path, second: Path, digits: UInt8Array
) -> None:
    """Every answer is wholly the old version's or wholly the new one's. The old engine is freed afterwards."""
    score = pb.ScoreRequest(images=raw(digits[:3]))
    sample = pb.SampleRequest(n=2, seed=5, temperature=0.0, format="IMAGE_FORMAT_RAW")
    answers: list[Answer] = []
    enough = threading.Event()

    def scores(stubs: Stubs) -> Answer:
        response = stubs.glow.Score(score)
        return response.model.version, "scores", *(each.log_likelihood for each in response.scores)

    def samples(stubs: Stubs) -> Answer:
        (response,) = stubs.glow.Sample(sample)
        return response.model.version, "samples", response.images.tensor.data

    def call_until_enough(call: Callable[[Stubs], Answer]) -> None:
        with connect(service.server) as stubs:
            while not enough.is_set():
                answers.append(call(stubs))

    with run_service(repository=models, **POLL) as service, ThreadPoolExecutor(CALLERS) as pool:
        old = weakref.ref(service.model()._engine)
        callers = [pool.submit(call_until_enough, samples if i < 3 else scores) for i in range(CALLERS)]
        try:
            wait_for(lambda: len(answers) > 300)
            publish(second, models / "digits" / "2")
            wait_for(lambda: service.served() == [("digits", 2)])
            more = len(answers) + 300
            wait_for(lambda: len(answers) > more)
        finally:
            enough.set()
        for caller in callers:
            caller.result()  # raises the error of a call that failed
        wait_for(lambda: old() is None)
        assert not service.has_info(version=1)
        assert service.has_info(version=2)
    distinct = {answer[:2]: {each[2:] for each in answers if each[:2] == answer[:2]} for answer in answers}
    assert {key: len(found) for key, found in distinct.items()} == {
        (version, kind): 1 for version in (1, 2) for kind in ("scores", "samples")
    }
    for kind in ("scores", "samples"):
        assert not distinct[1, kind] & distinct[2, kind]


def test_a_stream_that_has_begun_ends_with_the_version_it_began_with(
    run_service: RunService, models: Path, second: Path
) -> None:
    with run_service(repository=models, max_batch_size=2, **ON_REQUEST) as service:
        old = weakref.ref(service.model()._engine)
        stream = service.glow.Sample(pb.SampleRequest(n=4000, temperature=0.0))
        first = next(stream)
        publish(second, models / "digits" / "2")
        assert service.load() == [2]
        assert service.answering_version() == 2
        assert old() is not None
        assert {first.model.version, *(response.model.version for response in stream)} == {1}
        wait_for(lambda: old() is None)


def test_the_newest_versions_are_served_side_by_side(
    run_service: RunService, models: Path, second: Path
) -> None:
    publish(models / "digits" / "1", models / "digits" / "3")
    publish(second, models / "digits" / "2")
    with run_service(repository=models, versions="2", **ON_REQUEST) as service:
        assert service.served() == [("digits", 2), ("digits", 3)]
        assert [service.answering_version(version=version) for version in (0, 2, 3)] == [3, 2, 3]
        assert refusal(lambda: service.answering_version(version=1)) == (
            grpc.StatusCode.NOT_FOUND,
            "model.version 1 of 'digits' is not served; served are digits version 2, digits version 3",
        )
        metadata = service.inference.ModelMetadata(oip.ModelMetadataRequest(name="digits"))
        assert metadata.versions == ["2", "3"]
        index = service.inference.RepositoryIndex(oip.RepositoryIndexRequest()).models
        assert [(each.name, each.version, each.state) for each in index] == [
            (name, version, "READY") for version in ("2", "3") for name in ("digits", "digits.sample")
        ]
        publish(second, models / "digits" / "10")
        assert service.load() == [3, 10]


def test_versions_that_the_policy_names_are_served_and_no_others(
    run_service: RunService, models: Path, second: Path
) -> None:
    publish(second, models / "digits" / "2")
    publish(second, models / "faces" / "7")
    with run_service(repository=models, versions="digits=1", **ON_REQUEST) as service:
        assert service.served() == [("digits", 1), ("faces", 7)]


def test_a_new_model_is_found_and_after_a_deletion_the_version_before_is_served(
    run_service: RunService, models: Path, second: Path
) -> None:
    publish(second, models / "digits" / "2")
    with run_service(repository=models, **POLL) as service:
        assert service.served() == [("digits", 2)]
        publish(second, models / "faces" / "7")
        wait_for(lambda: service.served() == [("digits", 2), ("faces", 7)])
        assert service.status("faces") == SERVING
        (models / "digits" / "2").rename(models / "digits" / ".trash")
        wait_for(lambda: service.served() == [("digits", 1), ("faces", 7)])


def test_when_the_repository_disappears_its_models_are_still_served(
    run_service: RunService, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The disk may be a network's."""
    with run_service(repository=models, **ON_REQUEST) as service:
        shutil.rmtree(models)
        service.poll()
        service.poll()
        assert service.served() == [("digits", 1)]
        assert service.answering_version() == 1
    (error,) = [record.message for record in records_of(caplog) if record.levelname == "ERROR"]
    assert error.startswith("repository of the service: there is no such folder")
    assert error.endswith("; the models that are served stay")


# Bundles whose files change


def test_a_version_is_served_in_the_end_however_slowly_its_files_arrive(
    run_service: RunService, models: Path, second: Path
) -> None:
    """The manifest comes first, and each file in two parts. After every other part nothing comes for an interval."""
    target, parts = models / "digits" / "2", []
    names = (
        "manifest.json",
        "manifest.json.sha256",
        "flow.json",
        "calibration.npz",
        "reverse.onnx",
        "forward.onnx",
    )
    for name in names:
        data = (second / name).read_bytes()
        parts += [(name, data[: len(data) // 2]), (name, data[len(data) // 2 :])]
    with run_service(repository=models, **ON_REQUEST) as service:
        target.mkdir()
        for i, (name, part) in enumerate(parts, 1):
            with (target / name).open("ab") as file:
                file.write(part)
            service.poll()
            if i < len(parts):
                assert service.not_served() == [("digits", 2, "LOADING")]
                assert (service.served(), service.answering_version()) == ([("digits", 1)], 1)
            if i % 2:
                service.poll()
                assert service.not_served() == [("digits", 2, "REFUSED")]
        assert (service.served(), service.not_served()) == ([("digits", 2)], [])


def test_a_bundle_that_is_replaced_in_its_place_is_served_once_it_is_complete(
    run_service: RunService, models: Path, second: Path, digits: UInt8Array
) -> None:
    """The loaded bundle is served while its folder has some of the old files and some of the new ones."""
    place, score = models / "digits" / "1", pb.ScoreRequest(images=raw(digits[:2]))
    with run_service(repository=models, **ON_REQUEST) as service:
        before = service.glow.Score(score).scores
        for name in ("forward.onnx", "calibration.npz", "manifest.json", "manifest.json.sha256"):
            shutil.copy(second / name, place / name)
        service.poll()
        assert service.not_served() == [("digits", 1, "LOADING")]
        service.poll()
        assert service.not_served() == [("digits", 1, "REFUSED")]
        assert service.served() == [("digits", 1)]
        assert service.glow.Score(score).scores == before
        shutil.copy(second / "reverse.onnx", place / "reverse.onnx")
        service.poll()
        assert service.glow.Score(score).scores != before
        assert service.served() == [("digits", 1)]
        assert service.not_served() == []
        assert service.has_info(version=1)


# The start


def test_a_service_starts_with_the_version_before_if_the_newest_is_damaged(
    run_service: RunService, models: Path
) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    damage(models / "digits" / "2")
    with run_service(repository=models, **ON_REQUEST) as service:
        assert service.served() == [("digits", 1)]
        assert service.not_served() == [("digits", 2, "REFUSED")]
        assert service.status() == SERVING
        shutil.copy(models / "digits" / "1" / "forward.onnx", models / "digits" / "2" / "forward.onnx")
        service.poll()
        assert service.served() == [("digits", 2)]


def test_a_service_does_not_start_if_every_version_is_damaged(run_server: RunServer, models: Path) -> None:
    shutil.copytree(models / "digits" / "1", models / "digits" / "2")
    for version in ("1", "2"):
        damage(models / "digits" / version)
    with pytest.raises(BundleError, match=r"digits/2: forward\.onnx is not"), run_server(repository=models):
        pass


def test_a_service_does_not_start_if_the_policy_admits_no_version(
    run_server: RunServer, models: Path
) -> None:
    with (
        pytest.raises(BundleError, match=r"versions is 'digits=7', and repository .* has none of them"),
        run_server(repository=models, versions="digits=7"),
    ):
        pass


def no_folder(repository: Path, path: Path) -> Path:
    return path / "nowhere"


def empty_folder(repository: Path, path: Path) -> Path:
    return path


def file_in_place_of_a_folder(repository: Path, path: Path) -> Path:
    (path / "file").touch()
    return path / "file"


def folder_of_the_model(repository: Path, path: Path) -> Path:
    return repository / "digits"


def copied(repository: Path, path: Path) -> Path:
    shutil.copytree(repository / "digits", path / "digits")
    return path / "digits" / "1"


def folder_of_the_version(repository: Path, path: Path) -> Path:
    return repository / "digits" / "1"


def truncated_graph(repository: Path, path: Path) -> Path:
    graph = copied(repository, path) / "forward.onnx"
    graph.write_bytes(graph.read_bytes()[:1000])
    return path


def wrong_graph(repository: Path, path: Path) -> Path:
    bundle = copied(repository, path)
    shutil.copy(bundle / "forward.onnx", bundle / "reverse.onnx")
    return path


def missing_graph(repository: Path, path: Path) -> Path:
    (copied(repository, path) / "reverse.onnx").unlink()
    return path


def truncated_manifest(repository: Path, path: Path) -> Path:
    manifest = copied(repository, path) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:1000])
    return path


def missing_manifest(repository: Path, path: Path) -> Path:
    (copied(repository, path) / "manifest.json").unlink()
    return path


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (no_folder, "there is no such folder"),
        (empty_folder, "holds no bundle MODEL/VERSION/manifest.json"),
        (file_in_place_of_a_folder, "there is no such folder"),
        (
            folder_of_the_model,
            "is the folder of one model or version; give the folder in which MODEL/VERSION/ lies",
        ),
        (folder_of_the_version, "is the folder of one model or version"),
        (truncated_graph, "forward.onnx is not the file that was exported"),
        (wrong_graph, "reverse.onnx is not the file that was exported"),
        (missing_graph, "reverse.onnx cannot be read: No such file or directory"),
        (truncated_manifest, "manifest.json is not the file that was exported"),
        (missing_manifest, "holds no bundle MODEL/VERSION/manifest.json"),
    ],
)
def test_a_repository_that_cannot_be_served_ends_the_start_with_a_sentence(
    run_server: RunServer, repository: Path, tmp_path: Path, make: Callable[[Path, Path], Path], words: str
) -> None:
    path = make(repository, tmp_path)
    with pytest.raises(BundleError) as caught, run_server(repository=path):
        pass
    assert words in str(caught.value)
    assert str(path) in str(caught.value)

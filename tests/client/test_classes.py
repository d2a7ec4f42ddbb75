"""Classes through the whole system: from a conditional run to scores, samples and errors, served and embedded."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from glowserve_export.bundle import export
from glowserve_export.source import load_glowserve_checkpoint
from glowserve_export.triton import write_triton
from glowserve_service.server import Server
from glowserve_training.data import load_held_out, read_held_out, write_held_out
from glowserve_training.data.held_out import HeldOutImages
from glowserve_training.hardware import Hardware
from glowserve_training.presets import run_config
from glowserve_training.run import train

import glowserve
from glowserve.cli import main
from glowserve.client.errors import RequestError
from glowserve.oip import grpc_service_pb2, grpc_service_pb2_grpc
from glowserve.runtime import manifest
from glowserve.runtime.errors import BundleError
from glowserve.runtime.repository import Bundle, fingerprint, newest_bundle, open_bundle
from tests import servers
from tests.ui.http_requests import ask
from tests.ui.serving import serve_pages

NAMES = tuple("0123456789")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a conditional model of the digits, `digits`."""
    folder = tmp_path_factory.mktemp("conditional")
    plain = {"preprocessing": "centre", "checkerboards": 0, "dequantization": "uniform"}
    config = run_config(
        "digits", conditional=True, steps=60, steps_per_level=2, width=8, batch_size=32, **plain
    )
    checkpoint = train(config, folder / "run", hardware=Hardware(device="cpu"))
    export(load_glowserve_checkpoint(checkpoint), folder / "models" / "digits", device="cpu")
    return folder / "models"


@pytest.fixture(scope="module")
def bundle(models: Path) -> Bundle:
    return newest_bundle(models / "digits")


@pytest.fixture(scope="module")
def held_out(models: Path) -> HeldOutImages:
    return load_held_out(run_config("digits", conditional=True).data)


@pytest.fixture(scope="module")
def port(models: Path) -> Iterator[int]:
    with servers.run_server(models) as server:
        yield server.port


@pytest.fixture(scope="module")
def front_end_port(models: Path) -> Iterator[int]:
    """Of a service with two front-ends."""
    with servers.run_server(models, frontends=2) as server:
        yield server.port


@pytest.fixture(params=["served", "embedded"])
def client(request: pytest.FixtureRequest, models: Path) -> Iterator[glowserve.Client]:
    if request.param == "embedded":
        with glowserve.open(models / "digits") as opened:
            yield opened
        return
    with glowserve.Client(f"127.0.0.1:{request.getfixturevalue('port')}") as connected:
        yield connected


def names_of(images: HeldOutImages, n: int) -> list[str]:
    assert images.test_labels is not None
    return [NAMES[i] for i in images.test_labels[:n].tolist()]


def test_a_model_lists_its_classes_and_their_shares_add_up(client: glowserve.Client) -> None:
    assert client.models()[0].classes == NAMES
    assert sum(each.share for each in client.manifest().flow.classes) == pytest.approx(1)


def test_the_most_probable_class_is_mostly_right(client: glowserve.Client, held_out: HeldOutImages) -> None:
    posterior = client.score(held_out.test[:64], scores=["log_posterior"]).log_posterior
    assert posterior is not None
    np.testing.assert_allclose(np.exp(posterior).sum(1), 1, rtol=1e-5)
    found = [NAMES[i] for i in posterior.argmax(1)]
    assert np.mean([a == b for a, b in zip(found, names_of(held_out, 64), strict=True)]) > 0.5


def test_scores_given_classes_are_those_of_the_posterior(
    client: glowserve.Client, bundle: Bundle, held_out: HeldOutImages
) -> None:
    images, names = held_out.test[:300], names_of(held_out, 300)
    images = images[: len(names)]
    rest = client.score(images, scores=["log_posterior"])
    given = client.score(images, classes=names, scores=["log_prior", "log_det", "anomaly_p_value"])
    shares = np.log([each.share for each in bundle.manifest.flow.classes])
    own = [NAMES.index(name) for name in names]
    assert rest.log_posterior is not None
    expected = rest.log_likelihood + rest.log_posterior[range(len(own)), own] - shares[own]
    np.testing.assert_allclose(given.log_likelihood, expected, rtol=1e-5)
    assert given.log_prior is not None
    assert given.log_det is not None
    total = given.log_prior.sum(1) + given.log_det.sum(1) + bundle.manifest.log_det_constant
    np.testing.assert_allclose(total, given.log_likelihood, rtol=1e-5)


def test_percentiles_given_classes_compare_with_images_given_theirs(
    client: glowserve.Client, held_out: HeldOutImages
) -> None:
    images, names = held_out.test[:100], names_of(held_out, 100)
    right = client.score(images, classes=names).percentile.mean()
    wrong = client.score(images, classes=[NAMES[(NAMES.index(name) + 1) % 10] for name in names])
    assert 35 < right < 65
    assert wrong.percentile.mean() < right - 5


def test_one_class_of_all_images_is_the_same_as_one_for_each(
    client: glowserve.Client, held_out: HeldOutImages
) -> None:
    images = held_out.test[:5]
    each = client.score(images, classes=["3"] * 5, importance_samples=3)
    all_of_them = client.score(images, classes="3", importance_samples=3)
    np.testing.assert_array_equal(each.log_likelihood, all_of_them.log_likelihood)
    (streamed,) = client.iter_scores(images, class_name="3", importance_samples=3)
    np.testing.assert_array_equal(streamed.log_likelihood, all_of_them.log_likelihood)


def test_estimates_from_several_draws_are_those_of_each_images_own_class(
    client: glowserve.Client, held_out: HeldOutImages
) -> None:
    images, names = held_out.test[:5], ["3", "1", "4", "1", "5"]
    together = client.score(images, classes=names, importance_samples=3).log_likelihood
    alone = [
        client.score(images[i : i + 1], classes=names[i], importance_samples=3).log_likelihood[0]
        for i in range(5)
    ]
    np.testing.assert_allclose(together, alone, rtol=1e-6)


def test_samples_of_a_class_are_likelier_given_it_than_given_another(client: glowserve.Client) -> None:
    samples = client.sample(32, class_name="0", seed=1, temperature=0.7).images
    own, other = (client.score(samples, classes=name).log_likelihood for name in ("0", "1"))
    assert np.mean(own > other) > 0.7


def test_samples_without_a_class_have_classes_of_their_own_that_the_seed_draws(
    client: glowserve.Client,
) -> None:
    some = client.sample(8, seed=5).images
    np.testing.assert_array_equal(some, client.sample(12, seed=5).images[:8])
    by_class = [client.sample(8, seed=5, class_name=name).images for name in NAMES]
    same = np.array([(each == some).all(axis=(1, 2, 3)) for each in by_class])
    np.testing.assert_array_equal(same.sum(axis=0), 1)
    assert same.any(axis=1).sum() > 2


def test_encodings_are_decoded_without_a_class(client: glowserve.Client, held_out: HeldOutImages) -> None:
    encodings = client.encode(held_out.test[:8])
    assert (encodings.mismatched_values == 0).all()
    np.testing.assert_array_equal(client.decode(encodings.latents), held_out.test[:8])


def test_an_unknown_class_is_refused_with_those_that_there_are(
    client: glowserve.Client, held_out: HeldOutImages
) -> None:
    listed = "the classes of digits version 1 are '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'"
    with pytest.raises(RequestError, match=listed) as refused:
        client.score(held_out.test[:2], classes=["1", "cat"])
    assert (refused.value.code, refused.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "classes[1]")
    with pytest.raises(RequestError, match=r"classes\[70\] is 'cat'"):  # in the second call
        client.score(np.concatenate([held_out.test] * 2), classes=[*["1"] * 70, "cat", *["1"] * 287])
    with pytest.raises(RequestError, match=listed) as refused:
        client.sample(2, class_name="cat")
    assert (refused.value.code, refused.value.field) == (grpc.StatusCode.INVALID_ARGUMENT, "class_name")


@pytest.mark.parametrize("classes", [["1"], ["1"] * 3])
def test_there_is_one_class_for_each_image(
    classes: list[str], client: glowserve.Client, held_out: HeldOutImages
) -> None:
    with pytest.raises(ValueError, match=f"classes has {len(classes)} names, and there are"):
        client.score(held_out.test[:2], classes=classes)


def test_a_model_without_classes_takes_none(server: Server, held_out: HeldOutImages) -> None:
    with glowserve.Client(f"127.0.0.1:{server.port}") as client:
        with pytest.raises(RequestError, match=r"digits version 1 has no classes: it was not trained with"):
            client.sample(1, class_name="1")
        with pytest.raises(
            RequestError, match=r"scores\[0\] is 'log_posterior', and digits version 1 has no"
        ):
            client.score(held_out.test[:1], scores=["log_posterior"])


def test_the_open_inference_protocol_yields_posteriors_and_samples_classes(
    port: int, held_out: HeldOutImages
) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = grpc_service_pb2_grpc.GRPCInferenceServiceStub(channel)
        request = grpc_service_pb2.ModelInferRequest(model_name="digits")
        image = held_out.test[:2]
        request.inputs.add(name="image", datatype="UINT8", shape=image.shape)
        request.raw_input_contents.append(image.tobytes())
        request.outputs.add(name="log_posterior")
        answer = stub.ModelInfer(request)
        assert list(answer.outputs[0].shape) == [2, 10]
        for classes, code in (([3, -1], None), ([3, 10], grpc.StatusCode.INVALID_ARGUMENT)):
            draw = grpc_service_pb2.ModelInferRequest(model_name="digits.sample")
            for name, datatype, values in (
                ("seed", "UINT64", np.array([5, 5], "<u8")),
                ("temperature", "FP32", np.ones(2, "<f4")),
                ("class", "INT64", np.array(classes, "<i8")),
            ):
                draw.inputs.add(name=name, datatype=datatype, shape=[2, 1])
                draw.raw_input_contents.append(values.tobytes())
            if code is None:
                assert list(stub.ModelInfer(draw).outputs[0].shape) == [2, 8, 8, 1]
                continue
            with pytest.raises(grpc.RpcError) as refused:
                stub.ModelInfer(draw)
            assert refused.value.code() is code
            assert "input 'class': row 1 is 10; it must lie in 0 to 9" in refused.value.details()


def test_models_for_triton_yield_posteriors_and_take_classes(bundle: Bundle, tmp_path: Path) -> None:
    write_triton(bundle, tmp_path)
    program = Path(__file__).parents[1] / "export" / "programs" / "triton_client.py"
    read = [
        json.loads(
            subprocess.run(
                [sys.executable, program, "print-configuration", tmp_path / name / "config.pbtxt"],
                check=True,
                capture_output=True,
                timeout=120,
            ).stdout
        )
        for name in ("digits_forward", "digits_reverse")
    ]
    (posterior,) = [each for each in read[0]["output"] if each["name"] == "log_posterior"]
    (numbers,) = [each for each in read[1]["input"] if each["name"] == "class"]
    assert (posterior["data_type"], posterior["dims"]) == ("TYPE_FP32", ["10"])
    assert (numbers["data_type"], numbers["dims"], numbers["reshape"]) == ("TYPE_INT64", ["1"], {})


def test_a_front_end_knows_what_a_model_with_classes_needs(
    models: Path, front_end_port: int, held_out: HeldOutImages
) -> None:
    images, names = held_out.test[:40], names_of(held_out, 40)
    answers = []
    with (
        glowserve.open(models / "digits") as opened,
        glowserve.Client(f"127.0.0.1:{front_end_port}") as connected,
    ):
        for client in (opened, connected):
            assert client.models()[0].classes == NAMES
            posterior = client.score(images, scores=["log_posterior"]).log_posterior
            given = client.score(images, classes=names, scores=["anomaly_p_value"])
            samples = [client.sample(4, seed=5, class_name=name).images for name in ("", "7")]
            decoded = client.decode(client.encode(images).latents)
            answers.append((posterior, given.percentile, given.anomaly_p_value, *samples, decoded))
    for embedded, remote in zip(*answers, strict=True):
        np.testing.assert_allclose(remote, embedded, rtol=1e-5, atol=1e-5)


def test_the_command_line_scores_and_samples_a_class(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(models / "digits")]
    assert main(["sample", *model, "--n", "2", "--class", "7", "--seed", "1", "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    files = [str(tmp_path / "000000.png"), str(tmp_path / "000001.png")]
    assert main(["score", *files, *model, "--scores", "log_posterior", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [len(row["log_posterior"]) for row in rows] == [10, 10]
    assert main(["score", *files, *model, "--scores", "log_posterior"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.endswith("most probable class")
    best = max(rows[0]["log_posterior"])
    assert lines[0].endswith(f" {NAMES[rows[0]['log_posterior'].index(best)]} {math.exp(best):.1%}")
    assert main(["score", *files, *model, "--class", "7", "--out", str(tmp_path / "scores.csv")]) == 0
    assert main(["score", *files, *model, "--class", "zebra"]) == 1
    assert "the classes of digits version 1 are '0'" in capsys.readouterr().err


def test_the_page_of_samples_draws_the_chosen_class(port: int) -> None:
    with serve_pages(f"127.0.0.1:{port}") as url:
        assert ask(url, "/sample").text.count("<option value=") == 11
        drawn, other = (ask(url, f"/sample?n=2&class-digits={name}").text for name in "71")
        assert "2 images of class 7 at temperature 0.7, seed 0" in drawn
        assert png_of(drawn) != png_of(other)
        refused = ask(url, "/sample?n=2&class-digits=cat")
    assert refused.status == 400
    assert "class_name is 'cat'; the classes of digits version 1 are '0'" in refused.error


def png_of(page: str) -> str:
    """The data URL of the picture of a page."""
    return page.partition('src="data:')[2].partition('"')[0]


def test_a_calibration_with_unlabelled_images_has_none_given_classes(
    models: Path, held_out: HeldOutImages, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "unlabelled.npz", images=np.concatenate([held_out.test, held_out.calibration]))
    (tmp_path / "digits").symlink_to(models / "digits", target_is_directory=True)
    bundle = models / "digits" / "1"
    assert main(["calibrate", str(bundle), "--data", str(tmp_path / "unlabelled.npz")]) == 0
    assert "scores given a class are left out, since they take labelled images" in capsys.readouterr().err
    with glowserve.open(models / "digits" / "2") as client:
        with pytest.raises(RequestError, match="was calibrated with images without labels") as refused:
            client.score(held_out.test[:1], classes="1")
        assert refused.value.reason == "NOT_CALIBRATED"
        assert client.score(held_out.test[:1], scores=["log_posterior"]).log_posterior is not None


def test_held_out_images_of_a_run_with_other_classes_calibrate_nothing(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = read_held_out(models.parent / "run" / "held_out.npz")
    assert kept is not None
    assert tuple(kept.classes) == NAMES
    other, bundle = tmp_path / "held_out.npz", str(models / "digits" / "1")
    for classes, problem in (
        ((*NAMES[:3], "cat", *NAMES[4:]), f"class 3 is 'cat' in {str(other)!r} and '3' in the model"),
        (NAMES[:9], f"class 9 is missing in {str(other)!r} and '9' in the model"),
    ):
        write_held_out(replace(kept, classes=classes), other)
        assert main(["calibrate", bundle, "--data", str(other)]) == 2
        assert problem in capsys.readouterr().err
    write_held_out(kept, other)
    assert main(["calibrate", bundle, "--data", str(other), "--label-column", "digit"]) == 2
    assert "has one kind of labels; leave it out" in capsys.readouterr().err


def test_a_changed_calibration_given_classes_is_refused_and_changes_the_fingerprint(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    version = tmp_path / "digits" / "1"
    shutil.copytree(models / "digits" / "1", version)
    before, file = fingerprint(version), version / "class_calibration.npz"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert fingerprint(version) != before
    assert main(["verify", str(version), "--device", "cpu"]) == 1
    assert "class_calibration.npz is not the file that was exported" in capsys.readouterr().err


def test_a_version_with_attributes_has_the_classes_still(
    models: Path, held_out: HeldOutImages, tmp_path: Path
) -> None:
    shutil.copytree(models / "digits" / "1", tmp_path / "digits" / "1")
    assert main(["attributes", str(tmp_path / "digits"), "--data", "digits"]) == 0
    with glowserve.open(tmp_path / "digits" / "2") as client:
        (model,) = client.models()
        assert model.classes == NAMES
        assert "digit=3" in model.attributes
        assert client.score(held_out.test[:2], classes="3").finite.all()
        (image,) = client.manipulate(held_out.test[0], "digit=3", [0])
        np.testing.assert_array_equal(image, held_out.test[0])


def test_a_service_of_an_older_format_says_which_it_reads(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "FORMAT_VERSIONS", (1, 2, 3))
    with pytest.raises(BundleError, match="its format is version 4 and this service reads 1 to 3"):
        open_bundle(bundle.path)

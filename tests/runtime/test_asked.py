"""What a request may ask for: the names of scores, the false-alarm rate, and the draws of noise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from glowserve.runtime.asked import asked_of
from glowserve.runtime.calibration import open_scorer
from glowserve.runtime.errors import BundleError, InvalidRequestError, NotCalibratedError
from glowserve.runtime.repository import Bundle, open_bundle
from glowserve.scores import MAX_IMPORTANCE_SAMPLES, NOTHING_ELSE, TABLE, Asked, Scorer
from glowserve.v1 import glow_service_pb2 as pb
from tests.service.bundles import change_calibration, without_calibration, write_file

OLD = Path(__file__).parents[1] / "data" / "0.1.0" / "models" / "digits" / "1"


@pytest.fixture(scope="module")
def scorer(bundle: Bundle) -> Scorer:
    return open_scorer(bundle)


def ask(bundle: Bundle, scorer: Scorer, **fields: Any) -> Asked:
    return asked_of(pb.ScoreRequest(**fields), bundle, scorer)


def test_a_request_that_names_nothing_asks_for_nothing_else(bundle: Bundle, scorer: Scorer) -> None:
    assert ask(bundle, scorer) is NOTHING_ELSE
    assert ask(bundle, scorer, importance_samples=1) is NOTHING_ELSE


def test_a_rate_asks_for_anomalous_with_its_p_value_and_several_draws_for_the_standard_error(
    bundle: Bundle, scorer: Scorer
) -> None:
    assert ask(bundle, scorer, false_alarm_rate=0.05).scores == {"anomalous", "anomaly_p_value"}
    assert ask(bundle, scorer, importance_samples=2).scores == {"standard_error"}


def test_every_name_of_the_table_may_be_asked_for_also_twice(bundle: Bundle, scorer: Scorer) -> None:
    names = [name for name in TABLE if name != "log_posterior"]  # the model has no classes
    asked = ask(bundle, scorer, scores=[*names, *names], importance_samples=MAX_IMPORTANCE_SAMPLES)
    assert asked.scores == set(names)


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"scores": ["percentile", "p_value"]}, "scores[1]", "is 'p_value'; the scores are log_likelihood, "),
        ({"scores": [""]}, "scores[0]", "is ''; the scores are"),
        ({"scores": ["x" * 5000]}, "scores[0]", "is 'x{128}'; the scores are"),
        ({"scores": ["standard_error"]}, "importance_samples", "standard_error takes 2 or more"),
        ({"importance_samples": 0}, "importance_samples", "is 0; it must lie in 1 to 64"),
        ({"importance_samples": 65}, "importance_samples", "is 65; it must lie in 1 to 64"),
        ({"false_alarm_rate": 0.0}, "false_alarm_rate", "is 0; it must lie between 0 and 1"),
        ({"false_alarm_rate": 1.0}, "false_alarm_rate", "is 1; it must lie between 0 and 1"),
        ({"false_alarm_rate": -0.1}, "false_alarm_rate", "is -0.1; it must lie between 0 and 1"),
        ({"false_alarm_rate": float("nan")}, "false_alarm_rate", "is nan; it must lie between 0 and 1"),
        (
            {"false_alarm_rate": 0.001},
            "false_alarm_rate",
            "is 0.001, which takes 999 calibration images; this model has 90, which permit 1/91 or more; `glowserve ",
        ),
    ],
)
def test_what_cannot_be_asked_for_is_refused_with_what_can(
    bundle: Bundle, scorer: Scorer, fields: dict[str, Any], field: str, words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words) as caught:
        ask(bundle, scorer, **fields)
    assert caught.value.field == field
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("rate", [8.90105075251898e-41, 1e-300, 5e-324])
def test_a_rate_that_no_calibration_permits_is_refused_at_once(
    bundle: Bundle, scorer: Scorer, rate: float
) -> None:
    with pytest.raises(InvalidRequestError, match=f"is {rate:g}, which takes [0-9]+ calibration images"):
        ask(bundle, scorer, false_alarm_rate=rate)


def test_the_finest_rate_is_the_resolution(bundle: Bundle, scorer: Scorer) -> None:
    assert ask(bundle, scorer, false_alarm_rate=1 / 91).false_alarm_rate == 1 / 91
    with pytest.raises(InvalidRequestError, match="takes 91 calibration images"):
        ask(bundle, scorer, false_alarm_rate=1 / 92)


@pytest.fixture(params=["without the file", "of version 0.1.0"])
def uncalibrated(request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path) -> Bundle:
    if request.param == "of version 0.1.0":
        return open_bundle(OLD)
    without_calibration(bundle.path, tmp_path / "digits" / "1")
    return open_bundle(tmp_path / "digits" / "1")


def test_a_bundle_without_a_calibration_says_which_command_adds_it(uncalibrated: Bundle) -> None:
    scorer = open_scorer(uncalibrated)
    for name in ("anomaly_p_value", "anomalous", "typicality_p_value"):
        with pytest.raises(
            NotCalibratedError, match=rf"^score '{name}': .*`glowserve calibrate REPOSITORY/digits "
        ):
            ask(uncalibrated, scorer, scores=[name])
    with pytest.raises(NotCalibratedError, match=r"^score 'typicality_p_value'"):  # the first that is named
        ask(uncalibrated, scorer, scores=["percentile", "typicality_p_value", "anomaly_p_value", "anomalous"])
    for fields in ({"scores": ["complexity_bits_per_dim", "log_prior"]}, {"importance_samples": 3}):
        ask(uncalibrated, scorer, **fields)


def test_another_codec_takes_away_only_the_sizes_of_its_files(bundle: Bundle, tmp_path: Path) -> None:
    from dataclasses import replace

    change_calibration(bundle.path, tmp_path / "1", lambda old: replace(old, codec=old.codec + 1))
    other = open_bundle(tmp_path / "1")
    scorer = open_scorer(other)
    for name in ("complexity_bits_per_dim", "bits_per_dim_minus_complexity"):
        with pytest.raises(
            NotCalibratedError, match=r"another version of the WebP library.*glowserve calibrate"
        ):
            ask(other, scorer, scores=[name])
    ask(other, scorer, scores=["typicality_p_value", "anomaly_p_value", "anomalous"])


def test_a_calibration_that_makes_no_sense_refuses_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(bundle.path, tmp_path / "1")
    write_file(tmp_path / "1", "calibration.npz", b"no archive")
    with pytest.raises(BundleError, match=r"calibration\.npz: .*glowserve calibrate"):
        open_scorer(open_bundle(tmp_path / "1"))
    (tmp_path / "1" / "calibration.npz").write_bytes(b"other bytes")
    with pytest.raises(BundleError, match=r"calibration\.npz is not the file that was exported"):
        open_scorer(open_bundle(tmp_path / "1"))

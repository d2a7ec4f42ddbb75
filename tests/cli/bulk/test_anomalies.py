"""`--fail-on-anomaly`, which looks at the score `anomalous`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest

import glowserve
from glowserve.cli import main
from glowserve.cli.bulk.rows import Row
from glowserve.cli.bulk.run import Counts
from glowserve.images import UInt8Array
from tests.cli.bulk.folders import save


@pytest.mark.parametrize("out", [None, "a.csv", "a.parquet"])
def test_the_exit_code_is_3_if_a_picture_is_anomalous(
    out: str | None,
    tmp_path: Path,
    repository: Path,
    digits: UInt8Array,
    rng: np.random.Generator,
    capsys: pytest.CaptureFixture[str],
) -> None:
    noise = rng.integers(0, 256, digits[:2].shape, np.uint8)
    more = ["--out", str(tmp_path / out)] if out else []
    for images, code in ((digits[:1], 0), (noise, 3)):
        folder = save(images, tmp_path / f"pictures-{code}")
        # The digit was trained on: it is no anomaly at the finest rate that 90 calibration images permit.
        flags = ["--fail-on-anomaly", *more, "--model", str(repository / "digits")]
        assert main(["score", str(folder), *flags]) == code
    assert "2 of 2 files are anomalous" in capsys.readouterr().err


def test_a_file_has_the_scores_that_were_asked_for(
    tmp_path: Path, repository: Path, digits: UInt8Array
) -> None:
    folder, out = save(digits[:3], tmp_path / "pictures"), tmp_path / "scores.parquet"
    wanted = ["--scores", "log_prior,anomaly_p_value", "--false-alarm-rate", "0.5", "--worst", "2"]
    assert (
        main(["score", str(folder), *wanted, "--out", str(out), "--model", str(repository / "digits")]) == 0
    )
    table = pyarrow.parquet.read_table(out)
    scores = glowserve.open(repository / "digits", device="cpu").score(
        digits[:3], scores=["log_prior"], false_alarm_rate=0.5
    )
    columns = scores.columns()
    assert table.column_names == ["path", *columns, "error"]
    for name, values in columns.items():
        assert table[name].to_pylist() == values.tolist()
    assert out.with_name("scores-worst.png").exists()


def test_anomalous_pictures_are_counted() -> None:
    counts = Counts()
    rows = [
        Row("a", [1.0, True], None),
        Row("b", [2.0, False], None),
        Row("c", None, "no"),
        Row("d", [1.0, None], None),
    ]
    assert list(counts.passing(rows, ["bits_per_dim", "anomalous"])) == rows
    assert counts == Counts(pictures=4, failed=1, anomalous=1)

"""`--fail-on-anomaly`, which looks at the score `anomalous`."""

from __future__ import annotations

from pathlib import Path

import pytest

from glowserve.cli import main
from glowserve.cli.bulk.rows import Row
from glowserve.cli.bulk.run import Counts
from glowserve.images import UInt8Array
from glowserve.scores import COLUMNS
from tests.cli.bulk.folders import save


@pytest.mark.skipif("anomalous" in COLUMNS, reason="the score is there")
def test_without_the_score_the_flag_is_refused(
    tmp_path: Path, repository: Path, digits: UInt8Array, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = save(digits[:1], tmp_path / "pictures")
    for more in ([], ["--out", str(tmp_path / "a.csv")]):
        assert (
            main(["score", str(folder), "--fail-on-anomaly", *more, "--model", str(repository / "digits")])
            == 2
        )
        assert "needs the score `anomalous`" in capsys.readouterr().err


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

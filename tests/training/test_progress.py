"""Progress of training on stderr."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.runs import Interrupt, TinyRun, run


def test_without_a_terminal_each_validation_is_a_line_on_stderr(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_run(steps=3), tmp_path)

    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == [f"step {step} of 3" for step in (1, 2, 3)]
    assert all("bits/dim train " in line and ", validation " in line for line in lines)


def test_a_resumed_run_says_from_which_step(
    tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tiny_run(steps=4), tmp_path, [Interrupt(3)])
    capsys.readouterr()

    run(tiny_run(steps=4), tmp_path)

    lines = capsys.readouterr().err.splitlines()
    assert "resuming from step 2" in lines
    assert lines[-1].startswith("step 4 of 4: bits/dim")

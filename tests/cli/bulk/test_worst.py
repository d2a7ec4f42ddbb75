"""The pictures that belong least, and their sheet."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from PIL import Image

from glowserve.cli.bulk.rows import Row
from glowserve.cli.bulk.worst import Ranked, as_json, draw_sheet, worst_of
from glowserve.images import to_pil


def test_pictures_are_ordered_by_the_p_value_and_then_by_bits_per_dim() -> None:
    scores = {"a": (0.01, 5.0), "b": (0.01, 6.0), "c": (0.5, 9.0), "d": (0.01, math.inf), "e": (0.002, 1.0)}
    rows = [Row(path, [bits, p], None) for path, (p, bits) in scores.items()] + [Row("f", None, "no picture")]
    worst = worst_of(iter(rows), ["bits_per_dim", "anomaly_p_value"], 4)
    assert worst == [Ranked("e", 0.002), Ranked("d", 0.01), Ranked("b", 0.01), Ranked("a", 0.01)]


def test_without_a_p_value_the_least_likely_are_worst() -> None:
    rows = [Row(str(bits), [bits, True], None) for bits in (3.0, math.inf, 1.0, 5.0)]
    worst = worst_of(rows, ["bits_per_dim", "finite"], 10)
    assert [picture.score for picture in worst] == [math.inf, 5.0, 3.0, 1.0]
    assert as_json(worst[0]) == {"file": "inf", "score": None}


def test_the_sheet_shows_each_picture_at_its_rank(tmp_path: Path) -> None:
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250)]
    for i, colour in enumerate(colours):
        to_pil(np.full((9 + 300 * i, 30, 3), colour, np.uint8)).save(tmp_path / f"{i}.png")
    pictures = [Ranked(str(tmp_path / f"{i}.png"), i / 7) for i in range(3)]
    pictures.insert(1, Ranked(str(tmp_path / "gone.png"), 0.1))
    draw_sheet(pictures * 4, tmp_path / "sheet.png", 16)
    with Image.open(tmp_path / "sheet.png") as sheet:
        middles = [sheet.getpixel((8 + 136 * i + 64, 8 + 64)) for i in range(4)]
        assert middles == [colours[0], (192, 192, 192), colours[1], colours[2]]
        assert sheet.getpixel((8 + 136 + 64, 8 + 152 + 64)) == colours[2]  # the twelfth, in the second row
        captions = np.asarray(sheet.convert("L"))[8 + 128 : 8 + 128 + 16, 8 : 8 + 128]
        assert captions.min() < 100


def test_the_sheet_shows_pictures_that_use_12_of_16_bits_as_the_model_takes_them(tmp_path: Path) -> None:
    Image.fromarray(np.full((30, 30), 2048, np.uint16)).save(tmp_path / "deep.png")
    draw_sheet([Ranked(str(tmp_path / "deep.png"), 0.5)], tmp_path / "sheet.png", 12)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.getpixel((8 + 64, 8 + 64)) == (128, 128, 128)


def test_a_sheet_of_nothing_is_a_picture(tmp_path: Path) -> None:
    draw_sheet([], tmp_path / "sheet.png", 16)
    with Image.open(tmp_path / "sheet.png") as sheet:
        sheet.load()

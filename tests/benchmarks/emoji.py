"""Writes a folder of emoji with white backgrounds: drawings in colour, to train on or as images that do not belong.

    python tests/benchmarks/emoji.py NotoColorEmoji.ttf out/emoji

The font is in Debian's package fonts-noto-color-emoji.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

# The only size that the font's bitmaps have, and a canvas that holds them.
_FONT_SIZE, _CANVAS = 109, 136
_BLOCKS = ((0x2600, 0x27C0), (0x1F300, 0x1F650), (0x1F680, 0x1F700), (0x1F900, 0x1FB00))
# An emoji that shows a skin is drawn in each of these tones.
_TONES = ("", *(chr(tone) for tone in range(0x1F3FB, 0x1F400)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("font", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    args = parser.parse_args()
    print(f"{write_emoji(args.font, args.folder, args.size)} images in {args.folder}")


def write_emoji(font: Path, folder: Path, size: int) -> int:
    """Writes the font's emoji to a folder as PNG files of size x size pixels, and counts them."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn: set[bytes] = set()
    for name, image in _emoji(font):
        small = image.resize((size, size), Image.Resampling.LANCZOS)
        # The glyph of characters that the font lacks comes many times, and a tone that does not apply changes nothing.
        if small.tobytes() not in drawn:
            drawn.add(small.tobytes())
            small.save(folder / f"{name}.png")
    return len(drawn)


def _emoji(path: Path) -> Iterator[tuple[str, Image.Image]]:
    """Names and pictures."""
    font = ImageFont.truetype(str(path), _FONT_SIZE)
    for character in (chr(code) for block in _BLOCKS for code in range(*block)):
        for tone in _TONES:
            image = Image.new("RGB", (_CANVAS, _CANVAS), "white")
            text = character + tone
            draw = ImageDraw.Draw(image)
            if draw.textlength(text, font, embedded_color=True) > _CANVAS:
                continue  # without a glyph of their own, character and tone stand side by side
            draw.text((0, 4), text, font=font, embedded_color=True)
            yield "-".join(f"{ord(part):x}" for part in text), image


if __name__ == "__main__":
    main()

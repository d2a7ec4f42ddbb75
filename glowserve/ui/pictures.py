"""Pictures inside a page: as data URLs, so that no picture has an address of its own."""

from __future__ import annotations

import io
from base64 import b64encode

from PIL import Image

from glowserve.images import UInt8Array, encode_png


def png_url(picture: UInt8Array | Image.Image) -> str:
    """The PNG of an image, uint8 [H, W, C], or of a drawing, as a data URL."""
    if isinstance(picture, Image.Image):
        file = io.BytesIO()
        picture.save(file, "PNG")
        data = file.getvalue()
    else:
        data = encode_png(picture)
    return f"data:image/png;base64,{b64encode(data).decode()}"

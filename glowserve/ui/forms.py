"""The form that a visitor sends: its fields and its pictures, within bounds of number, size and time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from aiohttp import BodyPartReader, MultipartReader, web
from multidict import MultiDict, MultiMapping

from glowserve.output import printable, shortened
from glowserve.ui.errors import FormError

MOST_PICTURES = 500
"""The most pictures of a form."""

MOST_BYTES = 128 * 2**20
"""The most bytes of its pictures together."""

UPLOAD_SECONDS = 120.0
"""How long an upload may take."""

# A model has at most 256 attributes, each with a box to tick.
_MOST_FIELDS, _FIELD_BYTES, _NAME_CHARACTERS = 272, 1024, 200


@dataclass(frozen=True)
class Upload:
    """A picture that a visitor chose. The clients take it for an open file."""

    field: str
    """The field of the form."""

    name: str
    """The name of its file."""

    data: bytes
    """The content of its file."""

    def read(self) -> bytes:
        """The content."""
        return self.data


@dataclass(frozen=True)
class Form:
    """What a visitor filled in."""

    fields: MultiMapping[str] = field(default_factory=MultiDict[str])
    """The text of each field; `getall` has that of every ticked box of one name."""

    pictures: tuple[Upload, ...] = ()
    """The pictures, in order."""

    def picture(self, field: str) -> Upload:
        """The picture of a field.

        Raises:
            FormError: there is none.
        """
        found = [each for each in self.pictures if each.field == field]
        if not found:
            raise FormError(f"the {field} picture is missing: choose one")
        return found[0]


async def read_upload(request: web.Request) -> Form:
    """Reads a form with pictures.

    Raises:
        FormError: it is no such form, has too many or too large pictures, or arrives too slowly.
    """
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            return await _read(await request.multipart())
    except TimeoutError:
        raise FormError(
            f"the upload took longer than {UPLOAD_SECONDS:g} s: choose fewer pictures", 408
        ) from None
    except FormError:
        raise
    except Exception:  # bytes that are no form make aiohttp raise errors of many types
        raise FormError("the request is no form with pictures: send it from the page") from None


async def _read(reader: MultipartReader) -> Form:
    fields = MultiDict[str]()
    pictures: list[Upload] = []
    size = 0
    while (part := await reader.next()) is not None:
        if not isinstance(part, BodyPartReader):
            raise FormError("the form has parts within parts: send it from the page")
        name = part.name or ""
        if part.filename is None:
            if len(fields) == _MOST_FIELDS:
                raise FormError(f"the form has more than {_MOST_FIELDS} fields: send it from the page")
            fields.add(name, (await _bytes(part, _FIELD_BYTES, _too_long(name))).decode(errors="replace"))
        elif part.filename:  # it is empty if no file was chosen
            if len(pictures) == MOST_PICTURES:
                raise FormError(too_many(), 413)
            data = await _bytes(part, MOST_BYTES - size, too_large())
            size += len(data)
            pictures.append(
                Upload(name, shortened(printable(_file_name(part.filename)), _NAME_CHARACTERS), data)
            )
    return Form(fields, tuple(pictures))


async def _bytes(part: BodyPartReader, most: int, refusal: str) -> bytes:
    """The content of a part, of so many bytes at most; with more it is refused."""
    content = bytearray()
    while chunk := await part.read_chunk():
        content += chunk
        if len(content) > most:
            raise FormError(refusal, 413)
    return bytes(content)


def _file_name(path: str) -> str:
    """The name of a file without its folders, of any system."""
    return path.replace("\\", "/").rpartition("/")[2]


def _too_long(name: str) -> str:
    return f"the field {shortened(name, 40)!r} has more than {_FIELD_BYTES} bytes: send it from the page"


def too_many() -> str:
    """What to do with more pictures than a form may have."""
    return f"these are more than {MOST_PICTURES} pictures: choose fewer, or run {_COMMAND}"


def too_large() -> str:
    """What to do with larger pictures than a form may have."""
    return f"the pictures have more than {MOST_BYTES // 2**20} MiB together: choose fewer, or run {_COMMAND}"


_COMMAND = "glowserve score FOLDER --out scores.parquet --worst 20"

"""The processes in which a service decodes pictures, and pictures that keep them busy."""

from __future__ import annotations

import zlib
from contextlib import suppress
from pathlib import Path

from tests.glowserve.pictures import png_with


def decoder_processes(service: int) -> set[int]:
    """The ids of the processes of a service that decode pictures. Zombies count."""
    children = [int(child) for child in _read(f"/proc/{service}/task/*/children").split()]
    return {
        child for child in children if "decoder_main" in _read(f"/proc/{child}/cmdline") or _is_zombie(child)
    }


def lives(process: int) -> bool:
    """Whether a process exists and is no zombie."""
    return Path(f"/proc/{process}").exists() and not _is_zombie(process)


def processor_seconds(process: int) -> float:
    """The processor time that a process has used."""
    fields = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100 if fields else 0.0


def slow_pictures(n: int = 200) -> list[bytes]:
    """PNG files with compressed texts of 60 MiB, as many as Pillow reads: each takes a quarter of a second or more."""
    return n * [png_with(b"zTXt", b"k\0\0" + zlib.compress(bytes(2**20 - 1)), times=60)]


def _is_zombie(process: int) -> bool:
    status = _read(f"/proc/{process}/stat").rpartition(")")[2].split()
    return status[:1] == ["Z"]


def _read(pattern: str) -> str:
    """The text of files that may disappear meanwhile."""
    text = ""
    for path in Path("/").glob(pattern.lstrip("/")):
        with suppress(OSError):
            text += path.read_text()
    return text

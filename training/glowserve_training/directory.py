"""The directory of a training run.

RUN_DIR/run.json      the configuration, and a digest of the held-out images
RUN_DIR/files.json    of a folder of images, the files that the run began with
RUN_DIR/held_out.npz  the held-out images, if they are not too many to keep
RUN_DIR/model.ckpt    the result
RUN_DIR/resume/       the last saved state, from which the same command resumes
RUN_DIR/logs/         TensorBoard events
RUN_DIR/curve.png     bits/dim against images seen
RUN_DIR/images/       the prepared training images, if they are too large for memory
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glowserve.files import atomic_write
from glowserve_training.config import RunConfig
from glowserve_training.data import ImageData
from glowserve_training.errors import RunError

# Fields of RunConfig that have another key in run.json, the one that version 0.1.0 wrote.
_STORED_KEYS = {"max_rollbacks": "max_returns"}


class RunDirectory:
    """Binds a directory to one run's configuration and images.

    Args:
        path: RUN_DIR.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result = path / "model.ckpt"
        self.resume = path / "resume" / "last.ckpt"
        self.logs = path / "logs"
        self.images = path / "images"
        self.curve = path / "curve.png"
        self._record = path / "run.json"
        self._files = path / "files.json"

    def check(self, config: RunConfig) -> None:
        """Checks that the directory is new or belongs to a run with this configuration.

        The path of the data may be another if the run is to be resumed: `claim` compares the images themselves.

        Raises:
            RunError: it does not; the message names the fields that differ.
        """
        if not self._record.exists():
            if self.result.exists():
                raise RunError(
                    f"{self.path} has a {self.result.name} without {self._record.name}, which says how it was trained; "
                    "use another --out"
                )
            return
        stored = self._read()
        stored.pop("images", None)
        for name, key in _STORED_KEYS.items():
            stored[name] = stored.pop(key, None)
        current = _plain(asdict(config))
        if not self.result.exists() and isinstance(stored.get("data"), dict):
            stored["data"]["data"] = current["data"]["data"]
        self._refuse_differences("a run with other arguments", current, stored)

    def image_shape(self) -> dict[str, int]:
        """`image_size` and `channels` of the run, or nothing if the directory is new.

        Raises:
            RunError: the record is damaged.
        """
        if not self._record.exists():
            return {}
        model = self._read().get("model")
        if not isinstance(model, dict):
            raise self._damaged(self._record)
        shape = {name: model.get(name) for name in ("image_size", "channels")}
        found = {name: value for name, value in shape.items() if isinstance(value, int)}
        if found != shape:
            raise self._damaged(self._record)
        return found

    def files(self) -> list[str] | None:
        """The files that the run began with, as `Source.files` names them; None if there is no run, or no folder.

        Raises:
            RunError: the list is damaged.
        """
        if not (self._record.exists() and self._files.exists()):
            return None
        files = _load(self._files)
        if not isinstance(files, list) or not all(isinstance(name, str) for name in files):
            raise self._damaged(self._files)
        return files

    @contextmanager
    def claim(self, config: RunConfig, images: ImageData) -> Iterator[None]:
        """Locks the directory for a run, and writes run.json if there is none.

        Raises:
            RunError: another process trains in it, or the images have changed since the run started.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._write_or_check_record(config, images)
                yield
        except Timeout:
            raise RunError(
                f"another process trains in {self.path}; wait for it, or use another --out"
            ) from None

    def _write_or_check_record(self, config: RunConfig, images: ImageData) -> None:
        current = {"images": {"train": len(images.train), "held_out_sha256": images.digest}}
        if self._record.exists():
            stored = {"images": self._read().get("images")}
            self._refuse_differences("a run with other images, its data has changed", current, stored)
            return
        if images.files is not None:
            with atomic_write(self._files) as file:
                file.write(json.dumps(images.files, indent=0).encode() + b"\n")
        with atomic_write(self._record) as file:
            fields = {_STORED_KEYS.get(name, name): value for name, value in asdict(config).items()}
            file.write(json.dumps(fields | current, indent=2).encode() + b"\n")

    def _read(self) -> dict[str, Any]:
        stored = _load(self._record)
        if not isinstance(stored, dict):
            raise self._damaged(self._record)
        return stored

    def _damaged(self, file: Path) -> RunError:
        return RunError(f"{file} is damaged; use another --out, or remove {self.path}")

    def _refuse_differences(self, what: str, current: dict[str, Any], stored: dict[str, Any]) -> None:
        if different := _differences(current, stored):
            raise RunError(
                f"{self.path} has {what}: {'; '.join(different)}. "
                "Use the same arguments and images to resume it, or another --out"
            )


def _load(path: Path) -> Any:
    """The content of a JSON file; None if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """The values as JSON yields them."""
    return dict(json.loads(json.dumps(values)))


def _differences(current: dict[str, Any], stored: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(current.keys() | stored.keys()):
        new, old = current.get(name), stored.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            found += _differences(new, old, f"{prefix}{name}.")
        elif new != old:
            found.append(f"{prefix}{name} was {old} and is now {new}")
    return found

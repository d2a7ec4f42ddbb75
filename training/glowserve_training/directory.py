"""The directory of a training run.

RUN_DIR/run.json      what was asked for, and what images that meant
RUN_DIR/model.ckpt    the result
RUN_DIR/resume/       the last state, from which the same command goes on
RUN_DIR/logs/         TensorBoard
RUN_DIR/curve.png     bits/dim against images seen
RUN_DIR/images/       the prepared training images, where they are too many for memory
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


class RunDirectory:
    """Keeps one run, and nothing else, in a directory.

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

    def compare(self, config: RunConfig) -> None:
        """Refuses what was asked for differently here before.

        Raises:
            RunError: the message names the fields.
        """
        if not self._record.exists():
            if self.result.exists():
                raise RunError(
                    f"{self.path} holds a {self.result.name} and not what it came of; use another --out"
                )
            return
        before = self._read()
        before.pop("images", None)
        self._refuse_differences("a run with other arguments", _asked(config), before)

    @contextmanager
    def claimed(self, config: RunConfig, images: ImageData) -> Iterator[None]:
        """Holds the directory for a run, and writes down what is asked for.

        Raises:
            RunError: another process trains here, or the images have changed since the run began.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.path / ".lock", timeout=0):
                self._claim(config, images)
                yield
        except Timeout:
            raise RunError(
                f"another process trains in {self.path}; wait for it, or use another --out"
            ) from None

    def _claim(self, config: RunConfig, images: ImageData) -> None:
        means = {"images": {"train": len(images.train), "held_out_sha256": images.digest}}
        if self._record.exists():
            before = {"images": self._read().get("images")}
            self._refuse_differences("a run with other images, its data has changed", means, before)
            return
        with atomic_write(self._record) as file:
            file.write(json.dumps(_asked(config) | means, indent=2).encode() + b"\n")

    def _read(self) -> dict[str, Any]:
        try:
            before = json.loads(self._record.read_text())
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise RunError(f"{self._record} is damaged; use another --out, or remove {self.path}")
        return before

    def _refuse_differences(self, what: str, now: dict[str, Any], before: dict[str, Any]) -> None:
        if different := _differences(now, before):
            raise RunError(
                f"{self.path} holds {what}: {'; '.join(different)}. "
                "Use the same arguments and images to go on with it, or another --out"
            )


def _asked(config: RunConfig) -> dict[str, Any]:
    return dict(json.loads(json.dumps(asdict(config))))


def _differences(now: dict[str, Any], before: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(now.keys() | before.keys()):
        new, old = now.get(name), before.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            found += _differences(new, old, f"{prefix}{name}.")
        elif new != old:
            found.append(f"{prefix}{name} was {old} and is now {new}")
    return found

"""The directory of a training run.

RUN_DIR/run.json      the configuration, a digest of the held-out images, and how far the run has finished
RUN_DIR/files.json    of a folder of images, the files that the run began with
RUN_DIR/held_out.npz  the held-out images, if they are not too many to keep
RUN_DIR/model.ckpt    the result: the best weights on validation images
RUN_DIR/last.ckpt     the weights after the last step
RUN_DIR/resume/       the last saved state, from which the same command resumes, and an extended run continues
RUN_DIR/logs/         TensorBoard events
RUN_DIR/curve.png     bits/dim against images seen
RUN_DIR/images/       the prepared training images, if they are too large for memory
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from glowserve.files import atomic_write
from glowserve_training import stored
from glowserve_training.config import Part, RunConfig
from glowserve_training.data import ImageData
from glowserve_training.errors import RunError

# Keys of the record that are not fields of the configuration.
_IMAGES, _FINISHED = "images", "finished"


class RunDirectory:
    """Binds a directory to one run's configuration and images.

    Args:
        path: RUN_DIR.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.result = path / "model.ckpt"
        self.last = path / "last.ckpt"
        self.resume = path / "resume" / "last.ckpt"
        self.logs = path / "logs"
        self.images = path / "images"
        self.curve = path / "curve.png"
        self._record = path / "run.json"
        self._files = path / "files.json"

    def config(self) -> RunConfig | None:
        """The configuration of the directory's run; None if the directory is new.

        Raises:
            RunError: the record is damaged.
        """
        if not self._record.exists():
            return None
        fields = self._read()
        for key in (_IMAGES, _FINISHED):
            fields.pop(key, None)
        try:
            return stored.run_config(fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise self._damaged(self._record) from error

    def check(self, config: RunConfig) -> None:
        """Checks that the directory is new or belongs to a run with this configuration, or to one that it extends.

        The path of the data may be another if the run is to be resumed: `claim` compares the images themselves.

        Raises:
            RunError: it does not; the message names the fields that differ.
        """
        known = self.config()
        if known is None:
            if self.result.exists():
                raise RunError(
                    f"{self.path} has a {self.result.name} without {self._record.name}, which says how it was trained; "
                    "use another --out"
                )
            return
        finished = self.is_finished(known)
        known = replace(known, size=known.size or config.size)
        if finished and config.extensions[:-1] == known.extensions and config.extensions:
            known, finished = replace(known, extensions=config.extensions), False
        if not finished:
            known = replace(known, data=replace(known.data, data=config.data.data))
        self._refuse_differences("a run with other arguments", _fields(config), _fields(known))

    def is_finished(self, config: RunConfig) -> bool:
        """Whether the result is there, and not only that of the run before its last extension."""
        if not (self._record.exists() and self.result.exists()):
            return False
        return self._finished(config)["last_step"] == config.last_step

    def extended(self, config: RunConfig, steps: int, patience: int = 0) -> RunConfig:
        """The configuration with an extension of the finished run, or as it is if it has that already.

        Args:
            config: of the directory's run, see `config`.
            steps: steps of the whole run, the extension included.
            patience: of the extension.

        Raises:
            RunError: the run has not finished, has had as many steps, or its saved state is gone.
        """
        last = config.parts[-1]
        if config.extensions and steps == last.end and patience == last.patience:
            return config
        if not self.is_finished(config):
            raise RunError(
                f"{self.path} has a run that is to have {config.last_step} steps and has not finished; only a finished "
                "run can be extended: finish it first, with the command that began it"
            )
        trained = self._finished(config)["steps"]
        if steps <= trained:
            raise RunError(
                f"extend_to is {steps}, and the run in {self.path} has had {trained} steps; it must be more"
            )
        if not self.resume.exists():
            raise RunError(
                f"{self.path} cannot be extended without the state after its last step, and {self.resume} is gone; use "
                "another --out"
            )
        extension = Part(begin=trained, end=steps, patience=patience)
        return replace(config, extensions=(*config.extensions, extension))

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

    def finish(self, config: RunConfig, steps: int) -> None:
        """Records that the result is complete.

        Args:
            config: the run's configuration.
            steps: how many the run has had.
        """
        self._write(self._read() | {_FINISHED: {"last_step": config.last_step, "steps": steps}})

    def _write_or_check_record(self, config: RunConfig, images: ImageData) -> None:
        current = {_IMAGES: {"train": len(images.train), "held_out_sha256": images.digest}}
        if self._record.exists():
            self.check(config)  # again: another process may have had the directory in between
            record = self._read()
            self._refuse_differences(
                "a run with other images, its data has changed", current, {_IMAGES: record.get(_IMAGES)}
            )
            if extensions := stored.stored_fields(config)["extensions"]:
                self._write(record | {"extensions": extensions})
            return
        if images.files is not None:
            with atomic_write(self._files) as file:
                file.write(json.dumps(images.files, indent=0).encode() + b"\n")
        self._write(stored.stored_run(config) | current | {_FINISHED: None})

    def _write(self, record: dict[str, Any]) -> None:
        with atomic_write(self._record) as file:
            file.write(json.dumps(record, indent=2).encode() + b"\n")

    def _finished(self, config: RunConfig) -> dict[str, int]:
        """What `finish` recorded, or zeros. Of version 0.1.0, which recorded nothing, the result tells the same."""
        default = {"last_step": config.steps, "steps": config.steps}
        finished = self._read().get(_FINISHED, default) or dict.fromkeys(default, 0)
        if not isinstance(finished, dict) or finished.keys() != default.keys():
            raise self._damaged(self._record)
        return finished

    def _read(self) -> dict[str, Any]:
        record = _load(self._record)
        if not isinstance(record, dict):
            raise self._damaged(self._record)
        return record

    def _damaged(self, file: Path) -> RunError:
        return RunError(f"{file} is damaged; use another --out, or remove {self.path}")

    def _refuse_differences(self, what: str, current: dict[str, Any], known: dict[str, Any]) -> None:
        if different := _differences(current, known):
            raise RunError(
                f"{self.path} has {what}: {'; '.join(different)}. "
                "Use the same arguments and images to resume it, or another --out; --extend-to lengthens a finished run"
            )


def _load(path: Path) -> Any:
    """The content of a JSON file; None if it is damaged."""
    try:
        return json.loads(path.read_text())
    except ValueError:
        return None


def _fields(config: RunConfig) -> dict[str, Any]:
    """The values as JSON yields them."""
    return dict(json.loads(json.dumps(stored.stored_fields(config))))


def _differences(current: dict[str, Any], stored: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(current.keys() | stored.keys()):
        new, old = current.get(name), stored.get(name)
        if isinstance(new, dict) and isinstance(old, dict):
            found += _differences(new, old, f"{prefix}{name}.")
        elif new != old:
            found.append(f"{prefix}{name} was {old} and is now {new}")
    return found

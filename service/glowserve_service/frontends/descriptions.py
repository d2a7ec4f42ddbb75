"""What a front-end is told: its settings, and a model, without what only the engine process needs."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any, NamedTuple

from glowserve.runtime.attributes import Attributes, read_attributes, write_attributes
from glowserve.runtime.engine import Placement
from glowserve.runtime.repository import Bundle
from glowserve.scores import Scorer
from glowserve.scores.calibration import read_calibration, write_calibration
from glowserve.v1.manifest_pb2 import Manifest
from glowserve_service.config import ServiceConfig
from glowserve_service.models.served_model import ServedModel

_LENGTHS = struct.Struct("<IIII")
"""Of the facts, of the manifest, of the attributes, and of the calibration."""


class Described(NamedTuple):
    """A model as a front-end knows it."""

    number: int
    """The engine process's name for it: a version that is loaded again has a new one."""
    bundle: Bundle
    """Its files cannot be read."""
    scorer: Scorer
    class_scorer: Scorer | None
    attributes: Attributes
    placements: list[Placement]
    instances: int


def packed_model(number: int, model: ServedModel) -> bytes:
    """A model as bytes. Takes tens of milliseconds for a large calibration."""
    facts = {
        "number": number,
        "instances": model.instances,
        "placements": [astuple(placed) for placed in model.placements],
    }
    text, manifest = json.dumps(facts).encode(), model.manifest.SerializeToString()
    attributes, calibration = write_attributes(model.attributes), _calibration(model.scorer)
    lengths = _LENGTHS.pack(len(text), len(manifest), len(attributes), len(calibration))
    return b"".join((lengths, text, manifest, attributes, calibration, _calibration(model.class_scorer)))


def unpacked_model(data: bytes) -> Described:
    """The model that was packed."""
    begin, parts = _LENGTHS.size, []
    for length in _LENGTHS.unpack_from(data):
        parts.append(data[begin : begin + length])
        begin += length
    facts, manifest = json.loads(parts[0]), Manifest.FromString(parts[1])
    calibration, of_classes = (
        read_calibration(stored, manifest.image.channels, manifest.flow.levels) if stored else None
        for stored in (parts[3], data[begin:])
    )
    return Described(
        facts["number"],
        Bundle(Path(manifest.model, str(manifest.version)), manifest),
        Scorer(manifest, calibration),
        None if of_classes is None else Scorer.of_calibration(manifest, of_classes),
        read_attributes(parts[2]),
        [Placement(*placed) for placed in facts["placements"]],
        facts["instances"],
    )


def _calibration(scorer: Scorer | None) -> bytes:
    calibration = None if scorer is None else scorer.calibration
    return b"" if calibration is None else write_calibration(calibration)


def packed_config(config: ServiceConfig) -> bytes:
    """Settings as JSON."""
    return json.dumps(asdict(config), default=lambda path: {"path": str(path)}).encode()


def unpacked_config(data: bytes) -> ServiceConfig:
    """The settings that were packed."""

    def path(found: dict[str, Any]) -> Any:
        return Path(found["path"]) if found.keys() == {"path"} else found

    return ServiceConfig(**json.loads(data, object_hook=path))

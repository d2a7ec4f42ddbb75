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

_LENGTHS = struct.Struct("<III")
"""Of the facts, of the manifest, and of the attributes."""


class Described(NamedTuple):
    """A model as a front-end knows it."""

    number: int
    """The engine process's name for it: a version that is loaded again has a new one."""
    bundle: Bundle
    """Its files cannot be read."""
    scorer: Scorer
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
    calibration = model.scorer.calibration
    stored = b"" if calibration is None else write_calibration(calibration)
    attributes = write_attributes(model.attributes)
    lengths = _LENGTHS.pack(len(text), len(manifest), len(attributes))
    return b"".join((lengths, text, manifest, attributes, stored))


def unpacked_model(data: bytes) -> Described:
    """The model that was packed."""
    begin, parts = _LENGTHS.size, []
    for length in _LENGTHS.unpack_from(data):
        parts.append(data[begin : begin + length])
        begin += length
    facts, manifest, stored = json.loads(parts[0]), Manifest.FromString(parts[1]), data[begin:]
    calibration = read_calibration(stored, manifest.image.channels, manifest.flow.levels) if stored else None
    return Described(
        facts["number"],
        Bundle(Path(manifest.model, str(manifest.version)), manifest),
        Scorer(manifest, calibration),
        read_attributes(parts[2]),
        [Placement(*placed) for placed in facts["placements"]],
        facts["instances"],
    )


def packed_config(config: ServiceConfig) -> bytes:
    """Settings as JSON."""
    return json.dumps(asdict(config), default=lambda path: {"path": str(path)}).encode()


def unpacked_config(data: bytes) -> ServiceConfig:
    """The settings that were packed."""

    def path(found: dict[str, Any]) -> Any:
        return Path(found["path"]) if found.keys() == {"path"} else found

    return ServiceConfig(**json.loads(data, object_hook=path))

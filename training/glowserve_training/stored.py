"""Configurations as checkpoints and run.json store them. An absent key means what was done before it existed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from glowserve.image_size import ImageSize
from glowserve.images import Preparation
from glowserve_training.config import DataConfig, GlowConfig, Part, RunConfig, stored_model

# Where a field's default is not what glowserve did before the field existed.
_OLD_DATA = {"split_version": 1}
_OLD_RUN = {"size": ""}  # it is not known
# Fields that older versions do not know, and what they did.
_YOUNGER = {"fit": "crop", "bits_used": 16, "class_count": 0, "label_column": None, "classes": ()}
# Fields of RunConfig that have another key, the one that version 0.1.0 wrote.
_STORED_KEYS = {"max_rollbacks": "max_returns"}


def stored_fields(config: GlowConfig | DataConfig | RunConfig) -> dict[str, Any]:
    """The fields of a configuration as files hold them."""
    return asdict(config, dict_factory=_stored_values)


def stored_run(config: RunConfig) -> dict[str, Any]:
    """The fields of a RunConfig under the keys that are stored."""
    return {_STORED_KEYS.get(name, name): value for name, value in stored_fields(config).items()}


def _stored_values(fields: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Values as of old are left out where older versions do not know the field."""
    return {
        name: ImageSize(**value).stored if name == "image_size" else value
        for name, value in fields
        if name not in _YOUNGER or value != _YOUNGER[name]
    }


def data_config(stored: Mapping[str, Any]) -> DataConfig:
    """The DataConfig of stored fields.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a DataConfig.
    """
    preparation = Preparation(**stored["preparation"])
    made = {"preparation": preparation, "classes": tuple(stored.get("classes", ()))}
    return DataConfig(**(_OLD_DATA | dict(stored) | made))


def run_config(stored: Mapping[str, Any]) -> RunConfig:
    """The RunConfig of stored fields.

    Raises:
        KeyError, TypeError, ValueError: they are not those of a RunConfig.
    """
    values = _OLD_RUN | dict(stored)
    for name, key in _STORED_KEYS.items():
        values[name] = values.pop(key)
    extensions = tuple(Part(**part) for part in values.pop("extensions", ()))
    model, data = GlowConfig(**stored_model(values.pop("model"))), data_config(values.pop("data"))
    return RunConfig(model=model, data=data, extensions=extensions, **values)

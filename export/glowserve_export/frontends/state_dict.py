"""The weights of somebody else's PyTorch model, read strictly: no key may be missing, left over or misshapen."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glowserve_export.baked import Float64Array
from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.checks import check_finite

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight by its key, in the model's order."""

# What torch.nn.DataParallel puts before every key.
_PARALLEL = "module."
_WRITE = "write one with torch.save(model.state_dict(), PATH)"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict, or the one under "model" of a checkpoint of ignite; nothing in the file is executed.

    Returns:
        Tensors on the CPU by key, without the prefix of `torch.nn.DataParallel`.

    Raises:
        ForeignCheckpointError: there is no such file, or it holds something else.
    """
    if not path.is_file():
        raise ForeignCheckpointError(
            f"checkpoint {path}: there is no such file; give one that holds a state_dict"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever zip, pickle and torch make of foreign bytes
        raise ForeignCheckpointError(
            f"checkpoint {path} cannot be read as a state_dict: it is damaged or something else; {_WRITE}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ForeignCheckpointError(f"checkpoint {path} holds no state_dict; {_WRITE}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ForeignCheckpointError(
                f"checkpoint {path} is no state_dict: under key {key!r} lies a {type(value).__name__} and not a "
                f"tensor; {_WRITE}"
            )
    if all(key.startswith(_PARALLEL) for key in content):
        return {key.removeprefix(_PARALLEL): tensor for key, tensor in content.items()}
    return dict(content)


def match(found: Mapping[str, Tensor], shapes: Shapes, path: Path) -> dict[str, Float64Array]:
    """The weights in float64, if their keys and shapes are those that the arguments imply.

    Raises:
        ForeignCheckpointError: they are not; the first key that differs is named.
        NotInvertibleError: a weight is not finite.
    """
    for key in _in_model_order(found, shapes):
        if key not in found:
            difference = f"is missing; the arguments imply it, of shape {list(shapes[key])}"
        elif key not in shapes:
            difference = f"of shape {list(found[key].shape)} is left over; the arguments imply no such key"
        elif found[key].shape != shapes[key]:
            difference = f"has shape {list(found[key].shape)}, and the arguments imply {list(shapes[key])}"
        else:
            continue
        raise ForeignCheckpointError(
            f"checkpoint {path} does not fit its arguments: key {key} {difference}. Check --config, and --from"
        )
    check_finite(found)
    return {key: tensor.detach().double().numpy() for key, tensor in found.items()}


def _in_model_order(found: Mapping[str, Tensor], shapes: Shapes) -> list[str]:
    """All keys: those that the arguments imply, and every other one behind the one that it follows in the file."""
    order, place = list(shapes), 0
    for key in found:
        if key in shapes:
            place = order.index(key) + 1
        else:
            order.insert(place, key)
            place += 1
    return order

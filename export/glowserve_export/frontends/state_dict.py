"""Reads the state_dict of a public implementation's model strictly: a missing or unexpected key is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.folded import Float64Array
from glowserve_export.frontends.checks import check_finite

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight by its key, in the order of the model's layers."""

# The prefix of every key of a torch.nn.DataParallel.
_PARALLEL = "module."
_WRITE = "write one with torch.save(model.state_dict(), PATH)"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict, or a checkpoint with a state_dict under "model" (ignite). Executes no code in the file.

    Returns:
        Tensors on the CPU by key, without the prefix of `torch.nn.DataParallel`.

    Raises:
        ForeignCheckpointError: the file does not exist, or has no state_dict in it.
    """
    if not path.is_file():
        raise ForeignCheckpointError(
            f"checkpoint {path}: there is no such file; give a file with a state_dict"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch raise many kinds of errors on foreign bytes
        raise ForeignCheckpointError(
            f"checkpoint {path} cannot be read as a state_dict: it is damaged or another kind of file; {_WRITE}"
        ) from error
    if isinstance(content, dict) and isinstance(content.get("model"), dict):
        content = content["model"]
    if not isinstance(content, dict) or not content:
        raise ForeignCheckpointError(f"checkpoint {path} contains no state_dict; {_WRITE}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise ForeignCheckpointError(
                f"checkpoint {path} is not a state_dict: the value of key {key!r} is a {type(value).__name__} and not "
                f"a tensor; {_WRITE}"
            )
    if all(key.startswith(_PARALLEL) for key in content):
        return {key.removeprefix(_PARALLEL): tensor for key, tensor in content.items()}
    return dict(content)


def match(found: Mapping[str, Tensor], shapes: Shapes, path: Path) -> dict[str, Float64Array]:
    """Checks keys and shapes against those that the arguments imply, and returns the weights in float64.

    Raises:
        ForeignCheckpointError: they differ; the message names the first key that differs.
        NotInvertibleError: a weight is not finite.
    """
    for key in _in_model_order(found, shapes):
        if key not in found:
            difference = f"is missing; the arguments imply it, of shape {list(shapes[key])}"
        elif key not in shapes:
            difference = f"of shape {list(found[key].shape)} is unexpected; the arguments imply no such key"
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
    """All keys in the model's order; an unexpected key comes after the key that it follows in the file."""
    order, place = list(shapes), 0
    for key in found:
        if key in shapes:
            place = order.index(key) + 1
        else:
            order.insert(place, key)
            place += 1
    return order

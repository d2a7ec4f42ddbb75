"""Reads the state_dict of a public implementation's model strictly: a missing or unexpected key is an error."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from glowserve_export.convolution import Float64Array
from glowserve_export.errors import ForeignCheckpointError
from glowserve_export.frontends.checks import check_finite

Shapes = Mapping[str, tuple[int, ...]]
"""The shape of each weight by its key, in the order of the model's layers."""

# Where checkpoints have the state_dict, beside optimizers and counters.
_CONTAINERS = (
    *(
        "state_dict",
        "model",
        "model_state_dict",
        "model_state",
        "graph",
        "net",
        "network",
        "weights",
        "params",
    ),
    *("ema", "state_dict_ema", "ema_state_dict"),
)
# A container can contain itself, and keys can have any number of parts.
_MAX_DEPTH = 8
_REFUSED_CLASS = re.compile(r"GLOBAL (\S+) was not an allowed global")
# What wrappers insert into keys: DataParallel and AveragedModel, torch.compile, FSDP, activation checkpointing.
_INSERTED = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# AveragedModel counts in a buffer of its own.
_COUNTER = "n_averaged"
_WRITE = "write one with torch.save(model.state_dict(), PATH)"


class NumPyValue:
    """Stands for a NumPy value in a checkpoint, such as a learning rate, whose content is not read."""

    def __init__(self, *args: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


# The names in a pickle of what makes NumPy's scalars and arrays; NumPy 1 has its modules in numpy.core.
_NUMPY_NAMES = [
    (NumPyValue, name)
    for name in (
        "numpy.dtype",
        "numpy.ndarray",
        *(
            f"numpy.{core}.multiarray.{maker}"
            for core in ("core", "_core")
            for maker in ("scalar", "_reconstruct")
        ),
    )
]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Reads a state_dict, or a checkpoint with one in it (ignite, Lightning). Executes no code in the file.

    Returns:
        Tensors on the CPU by key, without the prefixes of wrappers such as `torch.nn.DataParallel` and
        `torch.compile`.

    Raises:
        ForeignCheckpointError: the file does not exist, or has no state_dict in it, or several.
    """
    if not path.is_file():
        raise ForeignCheckpointError(
            f"checkpoint {path}: there is no such file; give a file with a state_dict"
        )
    with torch.serialization.safe_globals(list(_NUMPY_NAMES)):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch raise many kinds of errors on foreign bytes
            raise ForeignCheckpointError(f"checkpoint {path} {_unreadable(path, error)}; {_WRITE}") from error
    content = _contained(content, path)
    if not isinstance(content, dict) or not content:
        raise ForeignCheckpointError(f"checkpoint {path} contains no state_dict; {_WRITE}")
    for key, value in content.items():
        if not isinstance(key, str):
            raise ForeignCheckpointError(
                f"checkpoint {path} is not a state_dict: its key {key!r} is not a string; {_WRITE}"
            )
        if not isinstance(value, Tensor):
            raise ForeignCheckpointError(
                f"checkpoint {path} is not a state_dict: the value of key {key!r} is a {type(value).__name__} and not "
                f"a tensor; {_WRITE}"
            )
        if value.layout != torch.strided or value.is_complex() or value.is_quantized:
            raise ForeignCheckpointError(
                f"checkpoint {path}: {key} is a {value.layout} tensor of {value.dtype}, and weights are dense and "
                "real; convert it to float32"
            )
    return _unwrapped(content, path)


def _unreadable(path: Path, error: Exception) -> str:
    """Why torch cannot read a file without executing code. Reads names of classes from it, and no objects."""
    classes = _REFUSED_CLASS.findall(str(error))
    if zipfile.is_zipfile(path):
        with suppress(Exception):  # a damaged file has no names
            if any(name.endswith("/constants.pkl") for name in zipfile.ZipFile(path).namelist()):
                return "is a TorchScript program and not a state_dict"
            classes = sorted(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    if not classes:
        return "cannot be read as a state_dict: it is damaged or another kind of file"
    own = [name for name in classes if not name.startswith("torch.")] or classes
    return (
        f"is a whole pickled model, or contains other Python objects, of class {' and '.join(own[:3])}: to load it "
        "would execute code. Load it where the model was trained"
    )


def _contained(content: Any, path: Path) -> Any:
    """The state_dict in a checkpoint, however deep; the content itself if it has none of the usual names."""
    for _ in range(_MAX_DEPTH):
        found = [name for name in _CONTAINERS if _may_contain(content, name)]
        if not found:
            break
        if len(found) > 1:
            raise ForeignCheckpointError(
                f"checkpoint {path} contains weights under {' and '.join(map(repr, found))}; choose and write those to "
                f"export: torch.save(torch.load({path.name!r})[{found[0]!r}], PATH)"
            )
        content = content[found[0]]
    return content


def _may_contain(content: Any, name: str) -> bool:
    """Whether weights may be under a name."""
    inner = content.get(name) if isinstance(content, dict) else None
    return isinstance(inner, dict) and any(isinstance(value, Tensor | dict) for value in inner.values())


def _unwrapped(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The weights by the keys of the model itself."""
    keys = {key: key.split(".") for key in weights if key.rpartition(".")[2] != _COUNTER}
    stripped = {key: [part for part in parts if part not in _INSERTED] for key, parts in keys.items()}
    for _ in range(_MAX_DEPTH):
        if not _is_attribute(list(stripped.values())):
            break
        stripped = {key: parts[1:] for key, parts in stripped.items()}
    unwrapped = {".".join(parts): weights[key] for key, parts in stripped.items()}
    if len(unwrapped) < len(stripped):
        raise ForeignCheckpointError(
            f"checkpoint {path} contains some weights twice, with and without the prefix of a wrapper; {_WRITE}"
        )
    return unwrapped


def _is_attribute(keys: Sequence[Sequence[str]]) -> bool:
    """Whether the first part of all keys is what a trainer calls the model, and no list of layers of the model."""
    return len({key[0] for key in keys if key}) == 1 and all(
        len(key) > 1 and not key[1].isdigit() for key in keys
    )


def numbers(found: Mapping[str, Tensor], pattern: str) -> set[str]:
    """The different numbers that keys have in the group of a pattern, as they are written."""
    return {matched[1] for key in found if (matched := re.match(pattern, key))}


def length(found: Mapping[str, Tensor], key: str, axis: int) -> int | None:
    """The length of an axis of a weight with four axes; None if the weight is missing, of another kind, or empty."""
    shape = found[key].shape if key in found else ()
    return shape[axis] or None if len(shape) == 4 else None


def check_recognized(found: Mapping[str, Tensor], layers: str, implementation: str, path: Path) -> None:
    """Raises ForeignCheckpointError if no key is that of a layer of the implementation, a pattern for `numbers`."""
    if found and not numbers(found, layers):
        raise ForeignCheckpointError(
            f"checkpoint {path} has no keys of a model of {implementation}, but {', '.join(islice(found, 3))}; check "
            "--from"
        )


def implied(shapes: Iterator[tuple[str, tuple[int, ...]]], found: Mapping[str, Tensor]) -> Shapes:
    """The implied shapes, as many as it takes to find a missing key: arguments can imply any number of them."""
    return dict(islice(shapes, len(found) + 1))


def match(
    found: Mapping[str, Tensor], shapes: Shapes, path: Path, contradictions: str = ""
) -> dict[str, Float64Array]:
    """Checks keys and shapes against those that the arguments imply, and returns the weights in float64.

    Args:
        found: the model's state_dict.
        shapes: see `implied`.
        path: the file of the state_dict, for messages.
        contradictions: see `glowserve_export.frontends.arguments.contradictions`.

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
            f"checkpoint {path} does not fit its arguments: key {key} {difference}.{contradictions} Check "
            "--config, and --from"
        )
    check_finite(found)
    return {key: tensor.detach().double().numpy() for key, tensor in found.items()}


def _in_model_order(found: Mapping[str, Tensor], shapes: Shapes) -> list[str]:
    """All keys in the model's order; an unexpected key comes after the key that it follows in the file."""
    index = {key: i for i, key in enumerate(shapes)}
    order, place = [(i, 0, key) for key, i in index.items()], -1
    for i, key in enumerate(found, 1):
        if key in index:
            place = index[key]
        else:
            order.append((place, i, key))
    return [key for _, _, key in sorted(order)]

"""What a run says of itself before its first step: model, training and device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import torch

from glowserve_training.config import RunConfig
from glowserve_training.model import Glow
from glowserve_training.schedule import intervals, part_of


def describe_run(
    config: RunConfig, model: Glow, start: int, device: torch.device, processes: int
) -> Iterator[str]:
    """Lines of text; those about the data are `data.report`'s.

    Args:
        config: the run's configuration.
        model: the model.
        start: steps that were done before.
        device: of this process.
        processes: that share each batch.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    fields = asdict(config.model)
    for name in ("image_size", "channels"):  # said of the images
        fields.pop(name)
    if config.model.coupling != "spline":
        fields = {name: value for name, value in fields.items() if not name.startswith("spline")}
    classes = fields.pop("class_count")
    if classes:
        fields["classes"] = classes
    described = ", ".join(f"{name.replace('_', ' ')} {_word(value)}" for name, value in fields.items())
    yield f"model: {described}; {parameters:,} parameters"
    part, (_, every) = part_of(config, start), intervals(config.steps)
    patience = f"patience {part.patience} validations" if part.patience else "without an early end"
    yield (
        f"training: {config.last_step} steps of {config.batch_size} images, learning rate {config.learning_rate:g} "
        f"({config.schedule}), validated every {every} steps, {patience}, seed {config.seed}"
    )
    yield f"device: {_device(device)}, precision {config.precision}" + (
        f", {processes} processes" if processes > 1 else ""
    )
    if start and start == part.begin:
        yield f"extending the run from step {start}"
    elif start:
        yield f"resuming from step {start}"


def duration(seconds: float) -> str:
    """A time that people read, with about two digits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return f"cuda ({torch.cuda.get_device_name(device)})"
    threads = torch.get_num_threads()
    return f"{device.type}, {threads} thread{'s' if threads > 1 else ''}"


def _word(value: object) -> object:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else value

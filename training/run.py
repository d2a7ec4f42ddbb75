"""A training run: from a data source to RUN_DIR/model.ckpt.

    RUN_DIR/run.json      what was asked for
    RUN_DIR/model.ckpt    the result
    RUN_DIR/resume/       the last state, from which the same command goes on
    RUN_DIR/logs/         TensorBoard

Everything is a function of the configuration: the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import Callback

from glowserve.files import atomic_write
from training import quantization
from training.checkpoint import Checkpoint, TrainingRecord, save_checkpoint
from training.config import RunConfig
from training.data import evaluation_batches, load_images
from training.data.batches import Batch
from training.errors import DivergedError, RunError
from training.fit import EVALUATION_BATCH, fit
from training.model import Glow
from training.module import GlowModule

RESULT = "model.ckpt"
_RECORD = "run.json"
_RESUME = "resume/last.ckpt"
_LOGS = "logs"


def train(
    config: RunConfig,
    run_dir: Path,
    *,
    device: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> Path:
    """Trains a model, or goes on with training where an interrupted run stopped.

    Args:
        config: what to train.
        run_dir: the run's directory; made if needed.
        device: "auto", "cpu" or "cuda".
        callbacks: of Lightning, in addition.

    Returns:
        The checkpoint's path, RUN_DIR/model.ckpt. If the run had finished already, nothing is done.

    Raises:
        RunError: `run_dir` holds a run that was asked for differently.
        DataError: the images cannot be read, or are too few.
        DivergedError: the loss is no longer finite.
        KeyboardInterrupt: as Ctrl-C brings it; the same call goes on later.
    """
    result = run_dir / RESULT
    _compare(run_dir, config)
    if result.exists():
        return result
    images = load_images(config.data)
    _claim(run_dir, config)  # only now: a mistyped --data must not bind the directory
    torch.manual_seed(config.seed)
    module = GlowModule(
        Glow(config.model),
        learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps,
        steps=config.steps,
    )
    fit(
        module,
        images,
        config,
        resume=run_dir / _RESUME,
        logs=run_dir / _LOGS,
        device=device,
        callbacks=callbacks,
    )
    model = module.model.cpu().eval()
    metrics = {
        f"{name}_bits_per_dim": mean_bits_per_dim(model, evaluation_batches(split, EVALUATION_BATCH))
        for name, split in (("validation", images.validation), ("test", images.test))
    }
    if not all(map(math.isfinite, metrics.values())):
        raise DivergedError(
            f"training ended with {metrics['validation_bits_per_dim']} bits/dim on validation images: it diverged. "
            f"Start again in an empty run directory with a learning rate below {config.learning_rate}"
        )
    record = TrainingRecord(
        steps=config.steps,
        images_seen=config.steps * config.batch_size,
        seed=config.seed,
        held_out_digest=images.held_out_digest,
        metrics=metrics,
    )
    save_checkpoint(Checkpoint(model, config.data, record), result)
    return result


@torch.no_grad()
def mean_bits_per_dim(model: Glow, batches: Sequence[Batch]) -> float:
    """The mean bits per dimension over batches."""
    bits = [quantization.bits_per_dim(model.log_prob(*batch), model.config.dimensions) for batch in batches]
    return float(torch.cat(bits).double().mean())


def _compare(run_dir: Path, config: RunConfig) -> None:
    """Refuses what was asked for differently here before."""
    record = run_dir / _RECORD
    if not record.exists():
        return
    try:
        before = json.loads(record.read_text())
        different = _differences(json.loads(json.dumps(asdict(config))), before)
    except (ValueError, AttributeError) as error:
        raise RunError(f"{record} is damaged; use another --out, or remove {run_dir}") from error
    if different:
        raise RunError(
            f"{run_dir} holds a run with other arguments: {'; '.join(different)}. "
            "Use the same arguments to go on with it, or another --out"
        )


def _claim(run_dir: Path, config: RunConfig) -> None:
    """Writes down what is asked for."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(run_dir / _RECORD) as file:
        file.write(json.dumps(asdict(config), indent=2).encode() + b"\n")


def _differences(asked: dict[str, Any], before: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name in sorted(asked.keys() | before.keys()):
        now, then = asked.get(name), before.get(name)
        if isinstance(now, dict) and isinstance(then, dict):
            found += _differences(now, then, f"{prefix}{name}.")
        elif now != then:
            found.append(f"{prefix}{name} was {then} and is now {now}")
    return found

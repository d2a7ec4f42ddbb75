"""A training run: from a data source to RUN_DIR/model.ckpt.

    RUN_DIR/run.json      what was asked for
    RUN_DIR/model.ckpt    the result
    RUN_DIR/resume/       the last state, from which the same command goes on
    RUN_DIR/logs/         TensorBoard

Everything is a function of the configuration: the same seed gives the same weights on the same machine.
"""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import lightning
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.data import DataLoader, Dataset

from glowserve.files import atomic_write
from training import quantization
from training.checkpoint import Checkpoint, TrainingRecord, save_checkpoint
from training.data import DataConfig, ImageData, StepLoader, evaluation_batches, load_images
from training.data.batches import Batch
from training.errors import DivergedError, RunError
from training.model import Glow, GlowConfig
from training.module import GlowModule
from training.progress import Progress

RESULT = "model.ckpt"
_RECORD = "run.json"
_RESUME = "resume/last.ckpt"
_EVALUATION_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """All that decides what a run yields, but for the machine."""

    model: GlowConfig
    """The architecture."""

    data: DataConfig
    """The images."""

    steps: int
    """Optimizer steps."""

    batch_size: int
    """Images a step."""

    learning_rate: float = 1e-3
    """At its highest."""

    warmup_steps: int = 100
    """Until the learning rate is at its highest."""

    clip_gradient_norm: float = 50.0
    """Gradients longer than this are shortened to it."""

    seed: int = 0
    """Of initialization, order and noise."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "warmup_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 1 or more")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must lie in 0 to 2^63 - 1")
        for name in ("learning_rate", "clip_gradient_norm"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be a positive number")


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
    _fit(module, images, config, run_dir, device, callbacks)
    model = module.model.cpu().eval()
    metrics = {
        f"{name}_bits_per_dim": mean_bits_per_dim(model, evaluation_batches(split, _EVALUATION_BATCH))
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


def _fit(
    module: GlowModule,
    images: ImageData,
    config: RunConfig,
    run_dir: Path,
    device: str,
    callbacks: Sequence[Callback],
) -> None:
    resume = run_dir / _RESUME
    start = torch.load(resume, map_location="cpu", weights_only=True)["global_step"] if resume.exists() else 0
    every = max(1, min(config.steps // 20, 500))
    batches = StepLoader(
        images.train, batch_size=config.batch_size, steps=config.steps, seed=config.seed, start=start
    )
    validation = evaluation_batches(images.validation, _EVALUATION_BATCH)
    _quieten()
    trainer = lightning.Trainer(
        accelerator={"auto": "auto", "cpu": "cpu", "cuda": "cuda"}[device],
        devices=1,
        max_steps=config.steps,
        max_epochs=1,
        gradient_clip_val=config.clip_gradient_norm,
        val_check_interval=every,
        num_sanity_val_steps=0,
        log_every_n_steps=10,
        logger=TensorBoardLogger(run_dir, name="", version="logs"),
        enable_model_summary=False,
        enable_progress_bar=False,
        plugins=[_AtomicCheckpointIO()],
        callbacks=[
            ModelCheckpoint(resume.parent, filename=resume.stem, every_n_train_steps=every, save_top_k=1,
                            enable_version_counter=False),
            LearningRateMonitor("step"),
            Progress(config.steps, start),
            *callbacks,
        ],
    )  # fmt: skip
    try:
        trainer.fit(
            module,
            batches,
            DataLoader(cast("Dataset[Batch]", validation), batch_size=None),
            ckpt_path=resume if start else None,
        )
    except SystemExit:  # Lightning's way of passing on Ctrl-C
        raise KeyboardInterrupt from None


class _AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's own writing is not atomic."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(Path(path)) as file:
            torch.save(checkpoint, file)


def _quieten() -> None:
    """Lightning tells of hardware, of tips and of its product; a user of this command asked for none."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", module="torch.utils.tensorboard")

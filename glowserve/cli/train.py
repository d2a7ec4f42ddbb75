"""`glowserve train`."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from glowserve.cli.failure import Failure

_MODEL = {
    "image-size": (int, "pixels a side; the images' own, up to 64"),
    "channels": (int, "1 (grey) or 3 (RGB); the first image's"),
    "n-bits": (int, "bits of each value that the model sees; 8"),
    "levels": (int, "levels of the flow; by image size"),
    "steps-per-level": (int, "steps of flow in a level; by image size"),
    "width": (int, "hidden channels of a coupling network; by image size"),
    "steps": (int, "optimizer steps; by image size"),
    "batch-size": (int, "images a step; by image size"),
    "learning-rate": (float, "at its highest; by image size"),
}
# Flags of the same name as what they set.
_CHOICES = (
    *("size", "coupling", "coupling_actnorm", "parametrization", "dequantization", "schedule"),
    *("weight_decay", "average_decay", "precision", "seed", "split_seed"),
)
_MACHINE = ("device", "devices", "nodes", "compile", "checkpoint_activations")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument(
        "--data",
        required=True,
        help="'digits', a folder of images, a .parquet or .npz file, or a dataset's name on the Hugging Face hub",
    )
    parser.add_argument("--out", required=True, type=Path, metavar="RUN_DIR", help="where model.ckpt is left")
    parser.add_argument(
        "--size",
        default="small",
        choices=["small", "paper"],
        help="for two CPU cores, or K=32 L=3 width=512 for a GPU; default: small",
    )
    for name, (kind, text) in _MODEL.items():
        parser.add_argument(f"--{name}", type=kind, metavar="N", help=f"{text} unless given")
    parser.add_argument(
        "--coupling", default="affine", choices=["affine", "additive"], help="default: affine"
    )
    parser.add_argument(
        "--parametrization",
        default="lu",
        choices=["lu", "orthogonal", "plain"],
        help="of the 1x1 convolutions; default: lu",
    )
    parser.add_argument(
        "--coupling-actnorm",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="actnorms inside the coupling networks, as in the original code; default: yes",
    )
    parser.add_argument(
        "--dequantization",
        default="uniform",
        choices=["uniform", "variational"],
        help="noise in the bins of grey values: uniform, or learned; default: uniform",
    )
    parser.add_argument(
        "--schedule",
        default="cosine",
        choices=["cosine", "constant"],
        help="of the learning rate; default: cosine",
    )
    parser.add_argument(
        "--weight-decay", type=float, default=0.0, metavar="X", help="of the coupling networks; default: 0"
    )
    parser.add_argument(
        "--average-decay",
        type=float,
        default=0.999,
        metavar="X",
        help="of the moving average of the weights, which is the result; 0: the last weights; default: 0.999",
    )
    parser.add_argument(
        "--precision",
        default="32-true",
        choices=["32-true", "bf16-mixed"],
        help="of the coupling networks in training; default: 32-true",
    )
    parser.add_argument("--seed", type=int, default=0, help="of initialization, order and noise; default: 0")
    parser.add_argument("--split-seed", type=int, default=0, help="which images are held out; default: 0")
    machine = parser.add_argument_group("what it is computed with")
    machine.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="default: auto")
    machine.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="processes on each machine that share a batch; default: 1",
    )
    machine.add_argument("--nodes", type=int, default=1, metavar="N", help="machines; default: 1")
    machine.add_argument("--compile", action="store_true", help="compile the steps of flow (torch.compile)")
    machine.add_argument(
        "--checkpoint-activations", action="store_true", help="far less memory for a third more time"
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(args: argparse.Namespace) -> int:
    """Trains, or goes on where an interrupted run stopped."""
    from glowserve_training.checkpoint import load_checkpoint
    from glowserve_training.directory import RunDirectory
    from glowserve_training.errors import DivergedError, TrainingError
    from glowserve_training.hardware import Machine
    from glowserve_training.presets import run_config
    from glowserve_training.run import leads, train

    values = {name.replace("-", "_"): getattr(args, name.replace("-", "_")) for name in _MODEL}
    try:
        config = run_config(
            args.data,
            **{name: getattr(args, name) for name in _CHOICES},
            **values,
        )
        machine = Machine(**{name: getattr(args, name) for name in _MACHINE})
        if RunDirectory(args.out).result.exists():
            print(f"{args.out} holds a finished run: nothing to do", file=sys.stderr)
        path = train(config, args.out, machine=machine)
        if not leads():
            return 0
        record = load_checkpoint(path).training
    except DivergedError as error:
        raise Failure(error, 1) from error
    except (TrainingError, ValueError, OSError) as error:
        raise Failure(error, 2) from error
    if record.metrics["test_bits_per_dim"] > config.model.n_bits:
        print(
            "glowserve: worse than a model that knows nothing: train longer, or with less --learning-rate",
            file=sys.stderr,
        )
    if args.json:
        print(json.dumps({"checkpoint": str(path), "steps": record.steps, **record.metrics}))
    else:
        print(f"{path}: {record.metrics['test_bits_per_dim']:.3f} bits/dim on test images")
        print(f"next: glowserve export {path} models/NAME")
    return 0

"""`glowserve demo`."""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path
from types import FrameType

from glowserve.cli.failure import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="default: out/demo")
    parser.add_argument("--steps", type=int, help="of training; enough for good digits unless given")


def run(args: argparse.Namespace) -> int:
    """Runs the demo; SIGTERM and SIGHUP end it as Ctrl-C does, and none of them leaves anything running."""
    from glowserve_export.errors import ExportError
    from glowserve_training.errors import TrainingError

    import glowserve
    from glowserve.demo.run import run_demo
    from glowserve.demo.service import ServiceDiedError

    signal.signal(signal.SIGTERM, _as_ctrl_c)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _as_ctrl_c)
    args.out.mkdir(parents=True, exist_ok=True)
    try:
        run_demo(args.out, steps=args.steps, say=lambda text: print(text, flush=True))
    except (TrainingError, ExportError, ServiceDiedError, glowserve.RequestError) as error:
        raise Failure(error, 1) from error
    except ValueError as error:
        raise Failure(error, 2) from error
    return 0


def _as_ctrl_c(_number: int, _frame: FrameType | None) -> None:
    print(file=sys.stderr)
    raise KeyboardInterrupt

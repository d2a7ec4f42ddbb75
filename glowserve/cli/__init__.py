"""The command `glowserve`.

Each command is a module here. It is imported, with whatever it needs, only when it is the one that was asked for:
`glowserve --help` is instant, and `glowserve score --server` works where neither torch nor a runtime is installed.

Exit codes: 0 done; 1 it was tried and failed, wholly or in part; 2 it could not begin (arguments, files, ports);
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
from collections.abc import Sequence

from glowserve.cli.failure import Failure

_COMMANDS = {
    "train": "train a model on a folder of images",
    "export": "make a bundle of a checkpoint, proved",
    "verify": "check that a bundle is whole and computes what was proved",
    "inspect": "show what a bundle is, what it costs, and what was proved",
    "evaluate": "measure a checkpoint or a bundle on held-out images",
    "serve": "serve bundles over gRPC",
    "score": "say how likely images are",
    "sample": "draw new images",
    "interpolate": "draw the way from one image to another",
    "models": "list models",
    "demo": "all of it, on handwritten digits",
}
# What each command's missing imports mean.
_EXTRAS = dict.fromkeys(("train", "export", "evaluate", "demo"), "train,cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(
        prog="glowserve",
        description="Trains Glow on images, exports it to ONNX, and serves likelihoods and samples.",
        epilog="`glowserve COMMAND --help` tells more.",
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("glowserve"))
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    asked = arguments[0] if arguments else ""
    try:
        for name, text in _COMMANDS.items():
            subparser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
            if name == asked:
                command = importlib.import_module(f"glowserve.cli.{name}")
                command.add_arguments(subparser)
        parsed = parser.parse_args(arguments)
        code: int = command.run(parsed)
    except Failure as failure:
        print(f"glowserve: {failure}", file=sys.stderr)
        return failure.code
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(asked, "cpu")
        print(
            f"glowserve: {asked} needs {error.name}, which is not installed: pip install 'glowserve[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print("glowserve: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `glowserve score ... | head`
        sys.stderr.close()
        return 1
    return code

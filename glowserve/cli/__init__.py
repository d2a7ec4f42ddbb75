"""The command `glowserve`.

Each command is a module here. Only the module of the command that was given is imported: `glowserve --help` is
instant, and `glowserve score --server` works where neither torch nor a runtime is installed.

Exit codes: 0 success; 1 the command ran and failed, wholly or in part; 2 it could not begin (arguments, files, ports);
130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import io
import sys
from collections.abc import Sequence
from typing import NoReturn

from glowserve import output
from glowserve.cli.failure import Failure

_COMMANDS = {
    "train": "train a model on a folder of images",
    "export": "turn a checkpoint into a verified bundle",
    "calibrate": "compare scores with other images: writes the next version of a bundle",
    "attributes": "compute directions of attributes from labelled images: writes the next version of a bundle",
    "verify": "check that a bundle is intact and still computes what its verification measured",
    "inspect": "show what a bundle contains, what it costs, and what its verification measured",
    "evaluate": "measure a checkpoint or a bundle on held-out images",
    "serve": "serve bundles over gRPC",
    "score": "compute how likely images are under a model",
    "sample": "draw new images",
    "interpolate": "draw images between two images",
    "manipulate": "move an image along attributes, such as smiling",
    "models": "list models",
    "ui": "look at a service in a browser: scores, samples, and walks between pictures",
    "demo": "train, export, serve, score and sample handwritten digits",
}
# The extras that a command needs; "cpu" for all others.
_EXTRAS = dict.fromkeys(("train", "export", "calibrate", "attributes", "evaluate", "demo"), "train,cpu") | {
    "ui": "ui"
}


class _Parser(argparse.ArgumentParser):
    """A parser that does not wait for a reader of standard error."""

    def error(self, message: str) -> NoReturn:
        """Ends the process with exit code 2 and a sentence."""
        sentence = output.printable(f"{self.prog}: error: {message}")
        output.say(sys.stderr, f"{self.format_usage()}{sentence}\n")
        raise SystemExit(2)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    output.open_closed_streams()
    arguments = sys.argv[1:] if argv is None else list(argv)
    command = arguments[0] if arguments else ""
    if command == "serve":
        _prepare_for_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # letters that its encoding lacks are no reason to fail
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = _run(command, arguments)
        sys.stdout.flush()
        return code
    except Failure as failure:
        return _fail(failure.code, str(failure))
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get(command, "cpu")
        return _fail(
            2, f"{command} needs {error.name}, which is not installed: pip install 'glowserve[{extra}]'"
        )
    except KeyboardInterrupt:
        return _fail(130, "interrupted")
    except BrokenPipeError:  # `glowserve score ... | head`
        sys.stderr.close()
        return 1
    except OSError as error:  # such as a full disk under standard output
        return _fail(1, str(error))


def _run(command: str, arguments: Sequence[str]) -> int:
    """Imports the module of the command, parses its arguments and runs it."""
    parser = _Parser(
        prog="glowserve",
        description="Trains Glow on images, exports it to ONNX, and serves likelihoods and samples.",
        epilog="`glowserve COMMAND --help` explains a command.",
    )
    parser.add_argument("--version", action="version", version=importlib.metadata.version("glowserve"))
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    module = None
    for name, text in _COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if name == command:
            module = importlib.import_module(f"glowserve.cli.{name}")
            module.add_arguments(subparser)
    parsed = parser.parse_args(arguments)
    if module is None:
        parser.error("the command must be the first argument")
    code: int = module.run(parsed)
    return code


def _prepare_for_signals() -> None:
    """Before the imports of the service, which take a second."""
    from glowserve_service import signals

    signals.prepare()


def _fail(code: int, sentence: str) -> int:
    """Says why the command failed, also where nobody reads standard error."""
    output.say(sys.stderr, f"glowserve: {output.printable(sentence)}\n")
    return code

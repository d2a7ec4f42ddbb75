"""The target of a command: a service, or a bundle in this process."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import glowserve
from glowserve.cli.failure import Failure


@dataclass(frozen=True)
class Target:
    """The client of a command."""

    client: glowserve.Client

    model: str
    """The name of the model for the client's calls; "" for the only model."""


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that select a target."""
    add_server_arguments(parser)
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="without --server: open the bundle REPOSITORY/MODEL; with it: the model's name there, "
        "which may be left out if it has one",
    )


def add_server_arguments(parser: argparse.ArgumentParser, server: str | None = None) -> None:
    """Adds the flags of a running service, with the service that is called if `--server` is left out."""
    default = f"; default: {server}" if server else ""
    parser.add_argument(
        "--server", metavar="HOST:PORT", default=server, help=f"call a running service{default}"
    )
    parser.add_argument(
        "--tls", action="store_true", help="encrypt, and trust the authorities that gRPC trusts"
    )
    parser.add_argument("--ca", metavar="FILE", help="encrypt, and trust this authority, PEM ($GLOWSERVE_CA)")
    parser.add_argument(
        "--cert",
        metavar="FILE",
        help="the client's certificate, PEM, for a service that requires one ($GLOWSERVE_CERT)",
    )
    parser.add_argument(
        "--key", metavar="FILE", help="the key of the client's certificate, PEM ($GLOWSERVE_KEY)"
    )
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="file with the token and nothing else ($GLOWSERVE_TOKEN is the token itself)",
    )


@contextmanager
def open_target(args: argparse.Namespace) -> Iterator[Target]:
    """Opens the target that the flags select. Errors of the calls in the block become Failure.

    Raises:
        Failure: no target is given, it cannot be opened, or a call was refused or failed.
    """
    try:
        if args.server:
            with glowserve.Client(args.server, **server_settings(args)) as client:
                yield Target(client, args.model or "")
        elif args.model:
            with _open_bundle(args.model) as client:
                yield Target(client, "")
        else:
            raise Failure("no target: pass --server HOST:PORT or --model REPOSITORY/MODEL", 2)
    except (glowserve.RequestError, glowserve.InvalidImageError) as error:
        unnamed = not args.model and getattr(error, "field", "") == "model.name"
        raise Failure(f"{error}; choose one with --model NAME" if unnamed else error, 1) from error
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise Failure(error, 2) from error


def server_settings(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `Client` and `AsyncClient` that the flags and the environment set, beside the target.

    Raises:
        Failure: the file of the token cannot be read.
    """
    return {
        "tls": args.tls,
        "ca": args.ca or os.environ.get("GLOWSERVE_CA") or None,
        "cert": args.cert or os.environ.get("GLOWSERVE_CERT") or None,
        "key": args.key or os.environ.get("GLOWSERVE_KEY") or None,
        "token": _token(args.token_file),
    }


def _token(file: Path | None) -> str | None:
    if file is None:
        return os.environ.get("GLOWSERVE_TOKEN") or None
    try:
        return file.read_text("utf-8").strip()
    except OSError as error:
        raise Failure(f"token file {file} cannot be read: {error.strerror}", 2) from None


def _open_bundle(model: str) -> glowserve.Client:
    from glowserve.runtime.errors import GlowserveError

    try:
        return glowserve.open(model)
    except GlowserveError as error:
        raise Failure(error, 2) from error

"""Who answers `score`, `sample` and `models`: a service, or a bundle in this process."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import glowserve
from glowserve.cli.failure import Failure

if TYPE_CHECKING:
    from service.embedded import EmbeddedModel


@dataclass(frozen=True)
class Target:
    """Something to ask, and the name of the model that is meant."""

    source: glowserve.Client | EmbeddedModel
    model: str


def add_target_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags that say whom to ask."""
    parser.add_argument("--server", metavar="HOST:PORT", help="ask a running service")
    parser.add_argument(
        "--model",
        metavar="MODEL",
        help="without --server: open the bundle REPOSITORY/MODEL; with it: the model's name there, "
        "which may be left out if it has one",
    )


@contextmanager
def target(args: argparse.Namespace) -> Iterator[Target]:
    """Opens what the flags name, and turns what goes wrong into a Failure."""
    try:
        if args.server:
            with glowserve.Client(args.server) as client:
                yield Target(client, args.model or "")
        elif args.model:
            yield Target(_embedded(args.model), "")
        else:
            raise Failure("whom to ask? Give --server HOST:PORT or --model REPOSITORY/MODEL", 2)
    except (glowserve.RequestError, glowserve.InvalidImageError) as error:
        raise Failure(error, 1) from error
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        raise Failure(error, 2) from error


def _embedded(model: str) -> EmbeddedModel:
    from service.errors import ServiceError

    try:
        return glowserve.open(model)
    except ServiceError as error:
        raise Failure(error, 2) from error

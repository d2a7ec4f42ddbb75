"""`glowserve serve`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import typing
from dataclasses import MISSING, fields

from glowserve.cli.failure import Failure
from service.config import ServiceConfig, variable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag and an environment variable for each field of ServiceConfig; the flag counts for more."""
    types = typing.get_type_hints(ServiceConfig)
    for setting in fields(ServiceConfig):
        name = variable(setting)
        default = "required" if setting.default is MISSING else f"default: {setting.default}"
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=types[setting.name],
            default=_from_environment(name, types[setting.name]),
            metavar=types[setting.name].__name__.upper(),
            help=f"{setting.metadata['help']} ({default}; ${name})",
        )


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM or SIGINT."""
    from service.errors import ServiceError
    from service.server import Server, serve

    given = {
        setting.name: value
        for setting in fields(ServiceConfig)
        if (value := getattr(args, setting.name)) is not None
    }
    if "repository" not in given:
        raise Failure("--repository (or $GLOWSERVE_REPOSITORY) is missing: the folder of bundles to serve", 2)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")

    def ready(server: Server) -> None:
        host = server.config.host
        print(
            f"glowserve: serving gRPC on {host}:{server.port}, metrics on http://{host}:{server.metrics_port}/metrics",
            flush=True,
        )

    try:
        asyncio.run(serve(ServiceConfig(**given), ready))
    except (ServiceError, ValueError) as error:
        raise Failure(error, 2) from error
    return 0


def _from_environment(name: str, kind: type) -> object:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise Failure(f"${name} is {text!r}; it must be of type {kind.__name__}", 2) from None

"""`glowserve serve`."""

from __future__ import annotations

import argparse
import asyncio
import os
import typing
from dataclasses import MISSING, fields
from typing import Any

from glowserve_service.config import ServiceConfig, variable

from glowserve.cli.failure import Failure


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag and an environment variable for each field of ServiceConfig; the flag counts for more."""
    types = {name: _kind(hint) for name, hint in typing.get_type_hints(ServiceConfig).items()}
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
    from glowserve_service.allocator import share_arenas

    share_arenas()  # before there are many threads

    from glowserve_service.observability import logs
    from glowserve_service.server import Server, serve

    from glowserve.runtime.errors import GlowserveError

    given = {
        setting.name: value
        for setting in fields(ServiceConfig)
        if (value := getattr(args, setting.name)) is not None
    }
    if "repository" not in given:
        raise Failure("--repository (or $GLOWSERVE_REPOSITORY) is missing: the folder of bundles to serve", 2)

    def ready(server: Server) -> None:
        config = server.config
        scheme = "http" if config.tls_cert is None else "https"
        metrics = f"{scheme}://{config.address(server.metrics_port)}/metrics"
        print(f"glowserve: serving gRPC on {config.address(server.port)}, metrics on {metrics}", flush=True)

    try:
        config = ServiceConfig(**given)
        logs.set_up(config.log_format, config.log_level)
        asyncio.run(serve(config, ready))
    except (GlowserveError, ValueError) as error:
        raise Failure(error, 2) from error
    return 0


def _kind(hint: Any) -> type:
    """What a text becomes; Path for `Path | None`."""
    kinds = [kind for kind in typing.get_args(hint) or (hint,) if kind is not type(None)]
    kind: type = kinds[0]
    return kind


def _from_environment(name: str, kind: type) -> object:
    text = os.environ.get(name)
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise Failure(f"${name} is {text!r}; it must be of type {kind.__name__}", 2) from None

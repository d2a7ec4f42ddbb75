"""`glowserve serve`: the flags and variables of ServiceConfig, and the life of the process around the service."""

from __future__ import annotations

import argparse
import asyncio
import logging
import math
import os
import sys
import threading
import typing
from dataclasses import MISSING, fields
from typing import TYPE_CHECKING, Any

from glowserve_service import environment
from glowserve_service.config import ServiceConfig, variable

from glowserve import output
from glowserve.cli.failure import Failure

if TYPE_CHECKING:
    from glowserve_service.server import Server

log = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A flag for each field of ServiceConfig."""
    types = _types()
    for setting in fields(ServiceConfig):
        default = "required" if setting.default is MISSING else f"default: {setting.default}"
        parser.add_argument(
            f"--{setting.name.replace('_', '-')}",
            type=types[setting.name],
            metavar=types[setting.name].__name__.upper(),
            help=f"{setting.metadata['help']} ({default}; ${variable(setting)})",
        )


def run(args: argparse.Namespace) -> int:
    """Serves until SIGTERM, SIGINT or SIGHUP, and ends the process.

    The exit code is 0; 1 after a fault of the service's own, which is in the log; 2 if the service cannot start. The
    interpreter would wait for threads that hang, and so would destructors of libraries.

    Raises:
        Failure: the settings are wrong.
        ModuleNotFoundError: a setting needs a package that is not installed.
    """
    from glowserve_service.allocator import share_arenas
    from glowserve_service.observability import descriptors, standard_streams

    descriptors.raise_limit()
    share_arenas()  # before there are many threads
    standard_streams.prepare()  # before ONNX Runtime is imported, which may write to standard error

    from glowserve_service.observability import logs
    from glowserve_service.server import serve

    from glowserve.runtime.errors import GlowserveError

    try:
        config = _config(args)
    except ValueError as error:
        raise Failure(error, 2) from error
    log_writer = logs.set_up(config.log_format, config.log_level)
    _log_unused_variables()
    code, sentence = 0, ""
    try:
        asyncio.run(serve(config, _print_addresses))
    except ModuleNotFoundError:
        log_writer.close()
        raise
    except (GlowserveError, ValueError) as error:
        code, sentence = 2, str(error)
    except Exception:
        log.exception("the service failed")
        code = 1
    log_writer.close()
    if sentence:
        output.say(sys.stderr, f"glowserve: {output.printable(sentence)}\n")
    os._exit(code)


def _log_unused_variables() -> None:
    known = [variable(setting) for setting in fields(ServiceConfig)]
    for name in environment.links(known):
        log.info("$%s is not used: it is a link, as Kubernetes sets", name)
    for name, similar in environment.mistaken(known).items():
        log.warning("$%s is not used; is $%s meant?", name, " or $".join(similar))


def _config(args: argparse.Namespace) -> ServiceConfig:
    """The settings: of each the flag, else the variable, else the default.

    Raises:
        Failure: the repository is missing, or a variable is not of its setting's type.
        ValueError: a setting is out of range.
    """
    given: dict[str, Any] = {}
    variables: dict[str, str] = {}
    types = _types()
    for setting in fields(ServiceConfig):
        if (value := getattr(args, setting.name)) is None:
            value = _from_environment(variable(setting), types[setting.name])
            variables[setting.name] = variable(setting)
        if value is not None:
            given[setting.name] = value
    if "repository" not in given:
        raise Failure("--repository (or $GLOWSERVE_REPOSITORY) is missing: the folder of bundles to serve", 2)
    try:
        return ServiceConfig(**given)
    except ValueError as error:
        name = str(error).partition(" ")[0]
        if name in variables and name in given:
            raise ValueError(f"{error} (${variables[name]})") from error
        raise


def _print_addresses(server: Server) -> None:
    """Prints the addresses of the service, in a thread: the write waits if nobody reads standard output."""
    arguments = (sys.stdout, _addresses(server), math.inf)
    threading.Thread(target=output.say, args=arguments, daemon=True).start()


def _addresses(server: Server) -> str:
    """The line about a service that is ready."""
    config = server.config
    scheme = "http" if config.tls_cert is None else "https"
    metrics = f"{scheme}://{config.address(server.metrics_port)}/metrics"
    return f"glowserve: serving gRPC on {config.address(server.port)}, metrics on {metrics}\n"


def _types() -> dict[str, type]:
    """The type of each setting."""
    return {name: _type(hint) for name, hint in typing.get_type_hints(ServiceConfig).items()}


def _type(hint: Any) -> type:
    """The type that a flag's text becomes: Path for `Path | None`."""
    types = [each for each in typing.get_args(hint) or (hint,) if each is not type(None)]
    first: type = types[0]
    return first


def _from_environment(name: str, kind: type) -> object:
    text = environment.read(name)
    if not text:
        return None
    try:
        return kind(text)
    except ValueError:
        raise Failure(f"${name} is {text!r}; it must be of type {kind.__name__}", 2) from None
